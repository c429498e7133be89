"""Encode films with torchcodec.

Asked: {"films": {name: {"frames": folder with frames.npy, "path", "rate", "options": of VideoEncoder.to_file}}}.
"""

import answering
import torch
from torchcodec.encoders import VideoEncoder

for film in answering.asked()["films"].values():
    frames = torch.from_numpy(answering.load(film["frames"])["frames"]).permute(0, 3, 1, 2).contiguous()
    VideoEncoder(frames, frame_rate=film["rate"]).to_file(film["path"], **film["options"])
answering.answer()
