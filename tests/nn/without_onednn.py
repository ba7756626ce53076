"""A machine whose torch has no oneDNN: neither its operators nor its kernels."""

import json

import torch

torch.backends.mkldnn.is_available = lambda: False
torch.backends.mkldnn.set_flags(False)
del torch.ops.mkldnn


class Missing:
    def __getattr__(self, name: str):
        raise AttributeError(f"'_OpNamespace' 'mkldnn' object has no attribute '{name}'")


torch.ops.mkldnn = Missing()

from jukebox.nn import conv, linear  # noqa: E402

torch.manual_seed(0)
stack, x = conv.ResidualStack(8, 4, growth_rate=3), torch.randn(1, 8, 700)
net, rows = torch.nn.Sequential(linear.Linear(16, 24)), torch.randn(4, 16)
expected, product = stack(x).detach(), net(rows).detach()
linear.pack(net, "fp32")
with torch.inference_mode():
    same = torch.allclose(conv.as_before(stack(conv.as_rows(x)), x), expected, atol=1e-5)
    packed = torch.allclose(net(rows), product, atol=1e-6)
print(json.dumps({"forms": linear.forms("cpu"), "stack": same, "packed": packed}))
