"""Where one word of a prompt shows in the picture while a diffusion model makes it, step by step: cross-attention.

The model is a small one, trained here for some seconds on pictures with a square in one quarter. A prompt is two words: the
colour of the square, and that of the ground. Where the square comes to stand is left to the noise.

Run it: pip install torch && python examples/one_token_over_steps.py
"""

from __future__ import annotations

import tempfile

import attncache

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    raise SystemExit("this example needs: pip install torch") from None

SIDE, COLOURS, STEPS, SHADES = 6, ("red", "green", "blue"), 21, " .:+#"


class Denoiser(nn.Module):  # type: ignore[misc]
    """Pixels look at each other, then at the words of the prompt."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.pixels, self.time, self.words = nn.Linear(3, width), nn.Linear(1, width), nn.Embedding(3, width)
        self.places, self.order = (nn.Parameter(torch.randn(n, width)) for n in (SIDE * SIDE, 2))
        self.attn1, self.attn2 = (nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(2))
        self.mlp, self.head = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, n)) for n in (width, 3)
        )

    def forward(self, noisy: Tensor, time: Tensor, prompt: Tensor) -> Tensor:
        x, words = self.pixels(noisy) + self.time(time) + self.places, self.words(prompt) + self.order
        x = x + self.attn1(x, x, x, need_weights=False)[0]
        x = x + self.mlp(x)
        return self.head(x + self.attn2(x, words, words, need_weights=False)[0])


def train(model: Denoiser, pixel: Tensor) -> None:
    """Teach it to find pictures [n, pixel, colour] under noise."""
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(300):
        prompt, (row, column), time = torch.randint(3, (64, 2)), torch.randint(2, (2, 64, 1)), torch.rand(64, 1, 1)
        is_square = (pixel // SIDE // 3 == row) & (pixel % SIDE // 3 == column)
        picture = nn.functional.one_hot(torch.where(is_square, prompt[:, :1], prompt[:, 1:]), 3) * 2.0 - 1
        optimiser.zero_grad()
        noisy = (1 - time) * picture + time * torch.randn(picture.shape)
        nn.functional.mse_loss(model(noisy, time, prompt), picture).backward()
        optimiser.step()


def main() -> None:
    """Make one picture of a red square on blue ground, and ask of every fifth step which pixels look at "red"."""
    torch.manual_seed(5)
    torch.set_num_threads(1)  # the model is too small for more
    model = Denoiser()
    train(model, torch.arange(SIDE * SIDE))
    picture, prompt = torch.randn(1, SIDE * SIDE, 3), torch.tensor([[COLOURS.index("red"), COLOURS.index("blue")]])
    with tempfile.TemporaryDirectory() as folder:
        with attncache.capture_runs(model.eval(), folder, every=5, layers="attn2") as runs, torch.no_grad():
            for step in range(STEPS):
                clean = model(picture, torch.full((1, 1, 1), 1 - step / STEPS), prompt)
                picture = picture + (clean - picture) / (STEPS - step)
        print(runs[0].sources[0])
        maps = attncache.map_runs(lambda cache: cache.columns(layers=0, positions=0), runs)  # to "red", mean over heads
        print("".join(f"{name:<14}" for name in runs.names) + "picture")
    colours = picture.argmax(-1).view(SIDE, SIDE).tolist()
    for row, line in enumerate(colours):
        shown = ["".join(2 * SHADES[round(4 * w)] for w in map_.reshape(SIDE, SIDE)[row]) for map_ in maps]
        print("".join(f"{words:<14}" for words in shown) + " ".join(COLOURS[colour][0] for colour in line))


if __name__ == "__main__":
    main()
