# pyright: standard
# much of torch is not typed
"""A network that reads scripted frames: which object is shown, and where.

A host model has to see something for frame selection to help it, and no host model that can be
downloaded fits into a test. This one has 30,000 parameters and learns in seconds, from training
videos, whose combinations of colour, shape and motion occur in no video of the benchmark. What an
object *does* it tells like anyone, by where the object is in one frame and the next.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from itg_data.errors import ItgError
from itg_data.files import replacing
from itg_data.synthetic import SyntheticConfig, render, write_script
from itg_data.synthetic.script import COLOURS, SHAPES
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

HEIGHT, WIDTH = 48, 64
"""What the network sees; frames are resized."""

WEIGHTS = "reader.safetensors"
NUM_STEPS, _BATCH_SIZE = 200, 48
_NUM_VIDEOS = 60


class FrameReader(nn.Module):
    """Finds the one coloured object of a scripted frame, or that there is none.

    It looks for the object's place first and reads colour and shape there.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 48)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 3, 2, 1), nn.GroupNorm(4, wide), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.Conv2d(48, 48, 3, 1, 1), nn.ReLU())
        self.place = nn.Conv2d(48, 1, 1)
        self.present = nn.Linear(48, 1)
        self.colour = nn.Linear(48, len(COLOURS))
        self.shape = nn.Linear(48, len(SHAPES))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reads frames.

        Args:
            frames: [B, 3, 48, 64] float32 in 0..1.

        Returns:
            Logits: [B] of an object being there, [B, 6] of its colour, [B, 4] of its shape. And
            [B, 2] its x and y, in 0..1 of width and height.
        """
        features = self.trunk(frames * 4 - 2)
        attention = self.place(features).flatten(1).softmax(1)
        seen = torch.einsum("bp,bcp->bc", attention, features.flatten(2))
        height, width = features.shape[-2:]
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5) / height,
            (torch.arange(width) + 0.5) / width,
            indexing="ij",
        )
        places = torch.stack([x, y], -1).reshape(-1, 2)
        return self.present(seen)[:, 0], self.colour(seen), self.shape(seen), attention @ places


def to_frames(images: Sequence[Image.Image]) -> Tensor:
    """Turns pictures into what the network takes: [N, 3, 48, 64]."""
    resized = [
        np.asarray(image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BOX))
        for image in images
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255


@torch.inference_mode()
def find_object(
    reader: FrameReader, images: Sequence[Image.Image], colour: str, shape: str
) -> list[tuple[float, float]]:
    """Says where an object is in each frame that shows it: x and y in 0..1, in order."""
    if colour not in COLOURS or shape not in SHAPES:
        raise ItgError(f"the reader knows {', '.join((*COLOURS, *SHAPES))}, got {colour} {shape}")
    present, colours, shapes, places = reader(to_frames(images))
    is_it = present > 0
    is_it &= colours.argmax(1) == list(COLOURS).index(colour)
    is_it &= shapes.argmax(1) == SHAPES.index(shape)
    return [(x, y) for x, y in places[is_it].tolist()]


def train_reader(folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Trains the network on scripted training videos and writes it into a folder."""
    frames, present, colour, shape, place = _labelled_frames()
    # so small a network gains nothing from threads, and on a busy machine they wait for each other
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reader = FrameReader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=NUM_STEPS)
    for step in range(NUM_STEPS):
        batch = torch.randint(len(frames), (_BATCH_SIZE,), generator=generator)
        there = present[batch]
        is_there, colours, shapes, places = reader(frames[batch])
        shown = there.bool()
        loss = functional.binary_cross_entropy_with_logits(is_there, there)
        loss = loss + functional.cross_entropy(colours[shown], colour[batch][shown])
        loss = loss + functional.cross_entropy(shapes[shown], shape[batch][shown])
        loss = loss + 10 * (places[shown] - place[batch][shown]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, NUM_STEPS)
    torch.set_num_threads(num_threads)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as part:
        save_file(reader.state_dict(), part)


def load_reader(folder: str | Path) -> FrameReader:
    """Loads a trained network.

    Raises:
        ItgError: There is none, or it is not one of these.
    """
    path = Path(folder) / WEIGHTS
    reader = FrameReader()
    try:
        reader.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ItgError(
            f"{path}: no weights of the reader: {' '.join(str(error).split())}"
        ) from None
    return reader.eval()


def _labelled_frames() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Frames of training videos, one a second, and what each shows."""
    config = SyntheticConfig(num_train=_NUM_VIDEOS, num_heldout=0, seed=2, fps=1)
    images: list[Image.Image] = []
    labels: list[tuple[float, int, int, float, float]] = []
    for number in range(_NUM_VIDEOS):
        script = write_script(config, "train", number)
        for time_s, pixels in enumerate(render(config, "train", number, script)):
            images.append(Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BOX))
            label = (0.0, 0, 0, 0.5, 0.5)
            for event in script.events:
                if event.span.start_s <= time_s < event.span.end_s:
                    done = (time_s - event.span.start_s) / (event.span.end_s - event.span.start_s)
                    x0, y0, x1, y1 = event.path
                    label = (
                        1.0,
                        list(COLOURS).index(event.shows.colour),
                        SHAPES.index(event.shows.shape),
                        x0 + (x1 - x0) * done,
                        y0 + (y1 - y0) * done,
                    )
            labels.append(label)
    table: npt.NDArray[np.float32] = np.asarray(labels, dtype=np.float32)
    columns = torch.from_numpy(table)
    present, colour, shape = columns[:, 0], columns[:, 1].long(), columns[:, 2].long()
    return to_frames(images), present, colour, shape, columns[:, 3:]
