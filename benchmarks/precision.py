"""Effect of bfloat16 and float16 on the images of a tokenizer.

    python benchmarks/precision.py demo/tokenizer

The benchmark encodes and decodes the held-out digits in float32, bfloat16 and float16. It prints
the share of equal codes and the distance from the float32 images: for encoder and decoder, and for
the decoder alone on the float32 codes.
"""

import sys
from pathlib import Path

import torch

from titok_hf import TiTokImageProcessor, TiTokModel
from titok_hf.data import ImageCollator, open_images


def psnr(images: torch.Tensor, reference: torch.Tensor) -> float:
    """Returns the peak signal-to-noise ratio in dB of images in [0, 1]."""
    error = (images.float().clamp(0, 1) - reference.clamp(0, 1)).square().mean()
    return float(-10 * error.log10())


@torch.no_grad()
def main(folder: Path) -> None:
    processor = TiTokImageProcessor.from_pretrained(folder)
    pixel_values = ImageCollator(processor)(list(open_images("digits").dataset("test")))[
        "pixel_values"
    ]
    reference = TiTokModel.from_pretrained(folder, dtype=torch.float32).eval()
    codes = reference.encode(pixel_values).codes
    images = reference.decode_codes(codes).reconstruction
    print(
        f"{len(images)} images; float32 against the originals: {psnr(images, pixel_values):.1f} dB"
    )
    for dtype in (torch.bfloat16, torch.float16):
        model = TiTokModel.from_pretrained(folder, dtype=dtype).eval()
        own_codes = model.encode(pixel_values.to(dtype)).codes
        whole = model.decode_codes(own_codes).reconstruction
        decoder = model.decode_codes(codes).reconstruction
        print(
            f"{str(dtype).removeprefix('torch.')}: {(own_codes == codes).float().mean():.1%} of "
            f"the codes the same; against float32 {psnr(whole, images):.1f} dB the whole way, "
            f"{psnr(decoder, images):.1f} dB the decoder alone, at most "
            f"{(decoder.float() - images).abs().max():.3f}; against the originals "
            f"{psnr(whole, pixel_values):.1f} dB"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
