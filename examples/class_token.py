"""Where a vision transformer looks: its class token's attention in the last layer, over the picture's grid of patches.

The model is a small one of torch.nn, trained here for some seconds to name the colour of the only square in a noisy picture.

Run it: pip install torch && python examples/class_token.py
"""

from __future__ import annotations

import attncache

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    raise SystemExit("this example needs: pip install torch") from None

PATCH, ROWS, COLUMNS, COLOURS = 4, 5, 6, ("red", "green", "blue")


class TinyViT(nn.Module):  # type: ignore[misc]
    """Patches and a class token through one layer; the class token names the colour."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(COLOURS))

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.patches(pictures).flatten(2).mT  # [picture, row * column, width]
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1)
        return self.head(self.blocks(tokens)[:, 0])


def make_pictures(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with one square of the size of a patch; its colour, and its place in the grid."""
    noisy = 0.3 * torch.randn(n, 3, ROWS, PATCH, COLUMNS, PATCH)
    colours, places = torch.randint(len(COLOURS), (n,)), torch.randint(ROWS * COLUMNS, (n,))
    noisy[torch.arange(n), colours, places // COLUMNS, :, places % COLUMNS] += 1
    return noisy.view(n, 3, ROWS * PATCH, COLUMNS * PATCH), colours, places


def main() -> None:
    """Train the model, capture one forward, and ask which patch the class token of each picture looks at."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the model is too small for more
    model = TinyViT()
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(100):
        pictures, colours, _ = make_pictures(32)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(pictures), colours).backward()
        optimiser.step()

    pictures, colours, places = make_pictures(100)
    with attncache.capture(model.eval()) as cache, torch.no_grad():
        named = model(pictures).argmax(-1)
    print(cache, cache.sources[-1], sep="\n")
    weights = cache.rows(layers=-1, positions=0, batch=None)  # from the class token, mean over heads: [picture, key]
    maps = weights[:, 1:].reshape(-1, ROWS, COLUMNS)  # key 0 is the class token itself
    found = maps.reshape(len(maps), -1).argmax(-1)
    print(f"colours named: {sum(named == colours)} of 100; squares where it looks most: {sum(found == places.numpy())}")
    print(f"a {COLOURS[colours[0]]} square at row, column {divmod(int(places[0]), COLUMNS)}; percent of its attention:")
    print("\n".join("".join(f"{100 * weight:4.0f}" for weight in row) for row in maps[0]))


if __name__ == "__main__":
    main()
