"""Decode films with torchcodec and write down every frame, its time and what the file says.

Asked: {"films": {name: path}, "out"}. Arrays in `out`: `<name>.frames` (frames, height, width, 3) uint8 and `<name>.times` seconds;
`<name>.backwards` are the frames fetched one by one from the last to the first, put in order again.
"""

import answering
import numpy as np
from torchcodec.decoders import VideoDecoder

request = answering.asked()
arrays, told = {}, {}
for name, path in request["films"].items():
    decoder = VideoDecoder(path, dimension_order="NHWC", seek_mode="exact")
    count = len(decoder)
    batch = decoder.get_frames_in_range(0, count)
    arrays[f"{name}.frames"], arrays[f"{name}.times"] = batch.data.numpy(), batch.pts_seconds.numpy()
    arrays[f"{name}.backwards"] = np.stack([decoder[number].numpy() for number in reversed(range(count))])[::-1]
    metadata = decoder.metadata
    told[name] = {"codec": metadata.codec, "frames": metadata.num_frames, "rate": float(metadata.average_fps)}
answering.save(request["out"], arrays)
answering.answer(films=told)
