"""The table of latents: what it gives is what encoding the asked frames gives, clamped at the end of the episode."""

import pytest
import torch

from uwm.learn import autoencode
from uwm.learn.autoencode import LatentTable, fingerprint
from uwm.nn.autoencoder import Autoencoder, AutoencoderConfig
from uwm.nn.codecs import VideoCodec, frames_to_unit


def test_the_table_gives_the_tokens_of_the_asked_frames_and_says_which_were_there():
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(32, 8, 3))
    episodes = [{"wrist": torch.randint(0, 256, (length, 32, 32, 3), dtype=torch.uint8)} for length in (5, 4)]
    asked = torch.tensor([[2, 3, 4, 5], [0, 1, 2, 3]])
    for merge in (1, 2):
        codec = VideoCodec(autoencoder, patch=2, merge=merge)
        table = LatentTable(codec, episodes, ("wrist",))
        tokens, there = table.at("wrist", torch.tensor([0, 1]), asked)
        for row, (episode, frames) in enumerate(zip(episodes, asked, strict=True)):
            seen = frames_to_unit(episode["wrist"])[frames.clamp(max=len(episode["wrist"]) - 1)]
            torch.testing.assert_close(tokens[row], codec.encode(seen[None])[0], atol=1e-5, rtol=1e-5)
        per_frame = tokens.shape[1] * merge // 4
        assert there.shape == tokens.shape[:2]
        assert there[:, ::per_frame].tolist() == ([[True, True, True, False], [True] * 4] if merge == 1 else [[True, False], [True] * 2])


def test_a_table_on_disk_is_the_one_in_memory_encodes_once_and_refuses_another_encoder(tmp_path, monkeypatch):
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(32, 8, 3))
    blind = {"wrist": torch.zeros(0, 32, 32, 3, dtype=torch.uint8), "top": torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)}
    episodes = [blind, *({name: torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8) for name in blind} for _ in range(2))]
    codec, folder = VideoCodec(autoencoder), tmp_path / "kept" / "arm"
    inside, written = LatentTable(codec, episodes, ("wrist", "top")), LatentTable(codec, episodes, ("wrist", "top"), folder, "arm 1")
    monkeypatch.setattr(autoencode, "_tokens", lambda codec, frames: pytest.fail("encoded twice"))
    again = LatentTable(codec, episodes, ("wrist", "top"), folder, "arm 1")
    place, asked = torch.tensor([0, 2, 1]), torch.tensor([[0, 2], [3, 9], [1, 1]])
    for camera in blind:
        for table in (written, again):
            assert all(torch.equal(a, b) for a, b in zip(table.at(camera, place, asked), inside.at(camera, place, asked), strict=True))
    with pytest.raises(ValueError, match="are of another data: remove that folder"):
        LatentTable(codec, episodes, ("wrist", "top"), folder, "arm 2")
    before = fingerprint(autoencoder)
    autoencoder.spread.mul_(1.001)
    assert fingerprint(autoencoder) != before
    with pytest.raises(ValueError, match="are of another autoencoder"):
        LatentTable(codec, episodes, ("wrist", "top"), folder, "arm 1")


def test_a_table_that_was_broken_off_is_begun_again(tmp_path):
    codec = VideoCodec(Autoencoder(AutoencoderConfig(32, 8, 3)))
    episode = {"top": torch.zeros(2, 32, 32, 3, dtype=torch.uint8)}

    def dying():
        yield episode
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LatentTable(codec, dying(), ("top",), tmp_path / "arm", "1")
    table = LatentTable(codec, [episode, episode], ("top",), tmp_path / "arm", "1")
    assert table.lengths["top"].tolist() == [2, 2] and [each.name for each in tmp_path.iterdir()] == ["arm"]
