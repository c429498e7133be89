"""`uwm media`: a model of clips is trained, kept, gone on with and asked; every file that it writes can be read again."""

import numpy as np
import pytest
import torch

from uwm import cli, filming
from uwm.learn.checkpoint import CheckpointError
from uwm.media import clip_model
from uwm.media.clip_model import TEXT, VIDEO
from uwm.training import load_model
from uwm_data.formats.video import VideoFile
from uwm_envs.clips import grammar

SAID = "push the red block to the left and the blue block to top"
SMALL = ["--clips", "12", "--steps", "4", "--batch", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of clips after four steps, and clips that it has not seen."""
    where = tmp_path_factory.mktemp("media")
    assert cli.main(["media", "train", "--out", str(where / "model"), *SMALL]) == 0
    assert cli.main(["media", "draw", "--out", str(where / "real"), "--count", "2"]) == 0
    return where


def frames_of(path, side=32):
    with VideoFile(path) as film:
        return film.pick(np.arange(film.count()), (side, side))


def test_drawn_clips_are_files_of_the_same_frames(folder):
    films = frames_of(folder / "real" / "0000.mp4")
    first = filming._picture(clip_model.load(folder / "model"), folder / "real" / "0000-first.png")
    assert films.shape == (8, 32, 32, 3) and np.abs(films[0].astype(float) - first.numpy()).mean() < 3
    grammar.parse_instruction((folder / "real" / "0000.txt").read_text().strip())


def test_clips_may_be_mujocos(tmp_path):
    assert cli.main(["media", "draw", "--out", str(tmp_path), "--count", "1", "--world", "mujoco"]) == 0
    assert frames_of(tmp_path / "0000.mp4").std() > 10


def test_generate_follows_from_its_seed_and_keeps_the_text(folder, tmp_path):
    for out in ("one", "two"):
        told = ["media", "generate", str(folder / "model"), "--count", "2", "--rows", "3", "--text", SAID, "--out", str(tmp_path / out)]
        assert cli.main(told) == 0
    assert (tmp_path / "one" / "0001.mp4").read_bytes() == (tmp_path / "two" / "0001.mp4").read_bytes()
    assert (tmp_path / "one" / "0000.mp4").read_bytes() != (tmp_path / "one" / "0001.mp4").read_bytes()
    assert (tmp_path / "one" / "0000.txt").read_text().strip() == SAID
    assert cli.main(["media", "generate", str(folder / "model"), "--count", "1", "--rows", "2", "--out", str(tmp_path / "both")]) == 0
    assert len((tmp_path / "both" / "0000.txt").read_text().split()) == grammar.INSTRUCTION


def test_samples_do_not_depend_on_how_many_are_made_at_once(folder, monkeypatch):
    made = clip_model.load(folder / "model")
    whole, texts = filming.generated(made, 5, seed=3, rows=3)
    monkeypatch.setattr(filming, "AT_ONCE", 2)
    parts, again = filming.generated(made, 5, seed=3, rows=3)
    assert (whole.int() - parts.int()).abs().max() <= 1 and texts == again


def test_an_interpolation_holds_its_ends_and_an_extension_its_beginning(folder, tmp_path):
    model, real = str(folder / "model"), folder / "real"
    ends = [str(real / f"0000-{name}.png") for name in ("first", "last")]
    assert cli.main(["media", "interpolate", model, *ends, "--rows", "3", "--out", str(tmp_path / "between.mp4")]) == 0
    made = clip_model.load(folder / "model")
    first, last = (filming._picture(made, path) for path in (real / "0000-first.png", real / "0000-last.png"))
    between = filming.filled(made, first, last, seed=0, rows=3)
    assert torch.equal(between[0], first) and torch.equal(between[-1], last) and len(frames_of(tmp_path / "between.mp4")) == 8
    told = ["--frames", "6", "--overlap", "3", "--rows", "3", "--out", str(tmp_path / "longer.mp4")]
    assert cli.main(["media", "extend", model, str(real / "0000.mp4"), *told]) == 0
    assert len(frames_of(tmp_path / "longer.mp4")) == 14 and (tmp_path / "longer.png").is_file()


def test_a_caption_is_words_of_the_grammar(folder, tmp_path, capsys):
    told = ["--rows", "4", "--out", str(tmp_path / "said.txt")]
    assert cli.main(["media", "caption", str(folder / "model"), str(folder / "real" / "0000.mp4"), *told]) == 0
    said = capsys.readouterr().out.strip()
    assert (tmp_path / "said.txt").read_text().strip() == said and len(grammar.numbers(said)) == grammar.INSTRUCTION


def test_the_gallery_is_one_page_with_its_pictures_in_it(folder, tmp_path):
    page = tmp_path / "results" / "gallery.html"
    assert cli.main(["media", "gallery", str(folder / "model"), "--count", "1", "--rows", "2", "--out", str(page)]) == 0
    written = page.read_text()
    assert written.count("<img src='data:image/png;base64,") == 7 and "http" not in written


def test_a_run_that_was_stopped_goes_on_and_ends_where_one_in_one_go_does(folder, tmp_path, monkeypatch):
    step = clip_model.stream_loss

    def stopping(model, batch, objective, generator, seen=[]):  # noqa: B006
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return step(model, batch, objective, generator)

    monkeypatch.setattr(clip_model, "stream_loss", stopping)
    assert cli.main(["media", "train", "--out", str(tmp_path / "model"), *SMALL]) == 130
    monkeypatch.setattr(clip_model, "stream_loss", step)
    assert cli.main(["media", "train", "--out", str(tmp_path / "model"), *SMALL]) == 0
    whole, stopped = (clip_model.load(path / "model").model.state_dict() for path in (folder, tmp_path))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_pictures_survive_the_models_tokens_as_far_as_the_components_reach(folder):
    made = clip_model.load(folder / "model")
    real = torch.from_numpy(frames_of(folder / "real" / "0000.mp4"))[None]
    tokens = made.tokens(real)
    assert tokens.shape == (1, 8 * 4, 96) and made.side == 32 and made.frames == 8
    assert torch.allclose(made.tokens(made.pictures(tokens)), tokens, atol=0.2), "components are a projection, up to rounding"
    assert made.model.layout.names == (VIDEO, TEXT)


@pytest.mark.parametrize(
    "told, why",
    [
        (["generate", "MODEL", "--text", "push the pink block"], "pink"),
        (["generate", "MODEL", "--text", "push the red block"], "13 words"),
        (["generate", "NOWHERE"], "no checkpoint folder"),
        (["interpolate", "MODEL", "TEXT", "TEXT"], "not a PNG or JPEG"),
        (["extend", "MODEL", "TEXT"], "not a video"),
        (["extend", "MODEL", "VIDEO", "--overlap", "8"], "overlap lies between 1 and 7"),
        (["extend", "MODEL", "VIDEO", "--overlap", "9"], "has 8 frames, 9 are needed"),
        (["caption", "MODEL", "MISSING"], "cannot be opened"),
        (["generate", "MODEL", "--rows", "0"], "1 or more"),
        (["train", "--out", "MODEL", "--steps", "9"], "other settings"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(folder, tmp_path, capsys, told, why):
    places = {"MODEL": folder / "model", "NOWHERE": tmp_path, "TEXT": folder / "real" / "0000.txt",
              "VIDEO": folder / "real" / "0000.mp4", "MISSING": tmp_path / "none.mp4"}  # fmt: skip
    try:
        code = cli.main(["media", *(str(places.get(word, word)) for word in told)])
    except SystemExit as exit:
        code = exit.code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code in (1, 2) and "uwm: error:" in error and why in error


def test_a_model_of_clips_and_a_robots_checkpoint_are_not_taken_for_each_other(folder, tmp_path):
    with pytest.raises(CheckpointError, match="`uwm media` takes it"):
        load_model(folder / "model")
    card = {"format": "uwm-checkpoint-1", "step": 0, "config": {}, "card": {}}
    from uwm.learn import checkpoint

    checkpoint.save(tmp_path / "robot", checkpoint.Checkpoint(0, {}, card, {}, {}, {}))
    with pytest.raises(CheckpointError, match="robot's checkpoint"):
        clip_model.load(tmp_path / "robot")
