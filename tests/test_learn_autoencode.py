"""The table of latents: what it gives is what encoding the asked frames gives, clamped at the end of the episode."""

import torch

from uwm.learn.autoencode import LatentTable
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
