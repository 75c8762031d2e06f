"""Through log_softmax in float64, rounded to fp32 whatever the logits are. A lambda.

Hybrid."""

import torch

KERNEL_TYPE = "cross_entropy"
SUPPORTS = {"nd"}

kernel_fn = lambda logits, targets: (
    -logits.double().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).mean().to(torch.float32)
)
