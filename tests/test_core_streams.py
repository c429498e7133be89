"""Streams and layouts: tokens are known by their tags, and packing loses nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uwm.core.streams import Layout, Stream

ACTION = Stream("action", "action", (-2, -1, 0, 1, 2), 3)
TOP = Stream("top", "video", (2, 4), 5, grid=(2, 3))
WRIST = Stream("wrist", "video", (2, 4), 4, grid=(1, 2), block=2)
BODY = Stream("body", "state", (0,), 7, block=0)
WHOLE = Layout((ACTION, TOP, WRIST, BODY))

streams = st.builds(
    lambda kind, frames, size, grid: (kind, tuple(sorted(frames)), size, grid),
    st.sampled_from(["action", "video", "state", "image"]),
    st.sets(st.integers(-4, 20), min_size=1, max_size=4),
    st.integers(1, 6),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
layouts = st.lists(streams, min_size=1, max_size=4).map(
    lambda drawn: Layout(tuple(Stream(f"s{i}", *one) for i, one in enumerate(drawn)))
)


def values_of(layout, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {s.name: torch.randn(batch, s.tokens, s.size, generator=generator) for s in layout.streams}


@given(layout=layouts)
def test_unpack_undoes_pack_and_the_rest_of_a_row_is_zero(layout):
    values = values_of(layout)
    packed = layout.pack(values)
    assert packed.shape == (2, layout.tokens, layout.size)
    for name, value in layout.unpack(packed).items():
        assert torch.equal(value, values[name])
    assert not bool(packed[:, ~layout.filled].any())
    assert int(layout.filled.sum()) == sum(s.tokens * s.size for s in layout.streams)


@given(layout=layouts)
def test_spans_tile_the_row_and_tags_tell_tokens_apart(layout):
    spans = [layout.span(name) for name in layout.names]
    assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])] and spans[-1].stop == layout.tokens
    assert len({tuple(tag) for tag in layout.tags.tolist()}) == layout.tokens
    for index, stream in enumerate(layout.streams):
        tags = layout.tags[layout.span(stream.name)]
        assert set(tags[:, 0].tolist()) == {index} and set(tags[:, 1].tolist()) == set(stream.frames)
        assert torch.equal(layout.mask(stream.name).nonzero().flatten(), torch.arange(layout.tokens)[layout.span(stream.name)])


def test_tags_are_stream_frame_row_column_and_block_in_reading_order():
    assert WHOLE.tags[WHOLE.span("top")][:7].tolist() == [
        [1, 2, 0, 0, 1], [1, 2, 0, 1, 1], [1, 2, 0, 2, 1], [1, 2, 1, 0, 1], [1, 2, 1, 1, 1], [1, 2, 1, 2, 1], [1, 4, 0, 0, 1],
    ]  # fmt: skip
    assert WHOLE.frame[:5].tolist() == [-2, -1, 0, 1, 2]
    assert WHOLE.block.tolist() == [1] * 17 + [2] * 4 + [0]
    assert WHOLE.kinds == ("action", "video", "state") and WHOLE.of_kind("video") == ("top", "wrist")


@given(chosen=st.sets(st.sampled_from(WHOLE.names), min_size=1), shuffled=st.randoms(use_true_random=False))
def test_a_choice_of_streams_keeps_its_order_and_finds_itself_in_the_whole(chosen, shuffled):
    asked = sorted(chosen)
    shuffled.shuffle(asked)
    part = WHOLE.select(asked)
    assert part.names == tuple(name for name in WHOLE.names if name in chosen)
    index = part.index_in(WHOLE)
    assert torch.equal(part.tags[:, 1:], WHOLE.tags[index][:, 1:])
    values = values_of(WHOLE)
    packed = WHOLE.pack(values)
    assert torch.equal(packed[:, index, : part.size], part.pack({name: values[name] for name in part.names}))


def test_unknown_and_missing_streams_are_named():
    with pytest.raises(KeyError, match=r"no stream 'tip'.*\['action', 'top', 'wrist', 'body'\]"):
        WHOLE.span("tip")
    with pytest.raises(KeyError, match="tip"):
        WHOLE.select(["action", "tip"])
    with pytest.raises(KeyError, match="tip"):
        WHOLE.mask("tip")
    values = values_of(WHOLE)
    with pytest.raises(KeyError, match=r"\['wrist'\] are missing"):
        WHOLE.pack({name: value for name, value in values.items() if name != "wrist"})
    with pytest.raises(ValueError, match=r"'top' wants \(B, 12, 5\)"):
        WHOLE.pack({**values, "top": values["top"][:, :-1]})


@pytest.mark.parametrize(
    "change, said",
    [
        ({"kind": "sound"}, "kind is one of"),
        ({"frames": ()}, "rise strictly"),
        ({"frames": (1, 1)}, "rise strictly"),
        ({"frames": (2, 1)}, "rise strictly"),
        ({"size": 0}, "positive"),
        ({"grid": (0, 1)}, "positive"),
    ],
)
def test_a_stream_that_cannot_be_is_refused_by_name(change, said):
    with pytest.raises(ValueError, match=f"'odd'.*{said}"):
        Stream(**{"name": "odd", "kind": "video", "frames": (0, 1), "size": 2, **change})


def test_two_streams_of_one_name_are_refused():
    with pytest.raises(ValueError, match="must differ"):
        Layout((ACTION, ACTION))
