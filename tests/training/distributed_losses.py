"""The losses of pre-training on two processes, whose batches are the halves of one; part of
`distributed_parts.py`."""

import torch
from safetensors.torch import save_file
from torch import distributed
from torch.nn import functional as F

from titok_hf.distributed import process_state
from titok_hf.training.contrast import contrastive_loss, sigmoid_loss
from titok_hf.training.self_supervision import (
    Centering,
    DINOHead,
    dino_losses,
    ibot_loss,
    koleo_loss,
    sinkhorn_targets,
)

BATCH = 8


def losses_and_gradients(start, stop):
    """The losses of the images `start` to `stop - 1` of a batch of `BATCH`, in float64, and the
    gradients of a head and two embeddings, each for itself."""
    torch.manual_seed(0)
    head = DINOHead(6, num_prototypes=12, mlp_size=8, bottleneck_size=4).double()
    images, texts = torch.nn.Linear(6, 5).double(), torch.nn.Linear(6, 5).double()
    rows = torch.randn(5, BATCH, 6, dtype=torch.float64)[:, start:stop]  # crops of each image
    teacher = torch.randn(2, BATCH, 12, dtype=torch.float64)[:, start:stop]
    masked = torch.rand(BATCH, 7) < torch.arange(BATCH)[:, None] / BATCH  # uneven between halves
    masked[:, 0] = True
    patches = torch.randn(BATCH, 7, 6, dtype=torch.float64)[start:stop]
    teacher_patches = torch.randn(BATCH, 7, 12, dtype=torch.float64)[start:stop]
    masked = masked[start:stop]

    targets = sinkhorn_targets(teacher.flatten(0, 1), 0.5).unflatten(0, (2, -1))
    centering = Centering(12).double()
    centering.update(teacher.flatten(0, 1))
    weights = (1 / masked.sum(1, keepdim=True)).double().expand_as(masked)[masked]
    embeds = [F.normalize(layer(rows[0]), dim=-1) for layer in (images, texts)]
    scale, bias = torch.tensor(3.0), torch.tensor(-1.0)
    losses = {
        "dino": sum(dino_losses(targets, head(rows[:2]), head(rows[2:]))),
        "centered": sum(dino_losses(centering(teacher, 0.5), head(rows[:2]), head(rows[2:]))),
        "ibot": ibot_loss(
            sinkhorn_targets(teacher_patches[masked], 0.5),
            head(patches[masked]),
            weights,
            num_crops=stop - start,
        ),
        "koleo": koleo_loss(images(rows[1])),
        "clip": contrastive_loss(*embeds, scale),
        "siglip": sigmoid_loss(*embeds, scale, bias),
    }
    found = {}
    parameters = [p for m in (head, images, texts) for p in m.parameters() if p.requires_grad]
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        found[name] = torch.cat([loss.detach()[None], *(g.flatten() for g in gradients)])
    return found


def main(folder):
    rank = process_state().process_index
    found = losses_and_gradients(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    for values in found.values():  # as distributed training averages gradients
        distributed.all_reduce(values)
        values /= 2
    if rank == 0:
        save_file(found, folder / "losses.safetensors")
