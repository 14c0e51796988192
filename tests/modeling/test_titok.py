import torch
def test_x(any_titok_config, pipeline, vqgan, pixel_values, any_generator):
    from titok_hf import TiTokModel
    m = TiTokModel(any_titok_config)
    o = m(pixel_values)
    print(o.keys(), {k: getattr(v,'shape',None) for k,v in o.items()}, o.codes, o.quantizer_loss)
    print(vqgan.encode(pixel_values).codes)
    print(pipeline([1,'two'], output_type='codes').codes, pipeline('one').images)
