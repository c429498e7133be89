"""The backbone over any streams: absent tokens have no influence, a frame does not see its future, words know only their mask."""

import pytest
import torch

import tiny
from oracle import unchecked_shapes
from uwm.core import roles
from uwm.core.patterns import Pattern
from uwm.core.streams import Layout, Stream
from uwm.learn.stream_objective import StreamBatch, StreamObjective, one_hot, stream_loss
from uwm.sample.denoise import denoiser

FRONT = Stream("front", "video", (0, 1, 2), 6, (2, 2), causal=True)
ACTION = Stream("action", "action", (0, 1, 2), 2, causal=True)
TEXT = Stream("text", "word", tuple(range(5)), 7)


def model(*streams, registers=0):
    torch.manual_seed(0)
    return tiny.stream_model(*streams, registers=registers).double()


def tokens(net, batch=2):
    x = torch.randn(batch, net.layout.tokens, net.layout.size, dtype=torch.float64) * net.layout.filled
    for name in net.layout.of_kind("word"):
        size = net.layout[name].size
        words = torch.randint(0, size, (batch, net.layout[name].tokens))
        x[:, net.layout.span(name), :size] = one_hot(words, net.layout, name).double()
    return x


def test_absent_streams_may_be_left_out_of_the_layout():
    net = model(FRONT, TEXT, registers=2)
    x, role = tokens(net), roles.full(2, net.layout.tokens)
    role[:, net.layout.span("text")] = roles.ABSENT
    whole = net(x, 0.5, role)[:, net.layout.span("front"), :6]
    alone = net.layout.select(["front"])
    assert torch.allclose(whole, net(x[:, :12, :6], 0.5, role[:, :12], alone), atol=1e-10)


def test_a_causal_frame_sees_earlier_frames_and_actions_and_nothing_later():
    net = model(FRONT, ACTION)
    x, role = tokens(net), roles.full(2, net.layout.tokens)
    level = torch.full(role.shape, 0.5, dtype=torch.float64)
    before = net(x, level, role)
    later = net.layout.frame == 2
    changed = net(torch.where(later[:, None], torch.randn_like(x), x), torch.where(later, 0.9, level), role)
    assert torch.equal(before[:, ~later], changed[:, ~later])
    earlier = net(torch.where((net.layout.frame == 0)[:, None], torch.randn_like(x), x), level, role)
    assert not torch.allclose(before[:, later], earlier[:, later])


def test_kept_frames_give_the_same_answer_as_frames_that_are_read_again():
    net = model(FRONT, ACTION)
    x, role, level = tokens(net), roles.full(2, net.layout.tokens), torch.rand(2, net.layout.tokens, dtype=torch.float64)
    whole, prefix = net(x, level, role), None
    for frame in range(3):
        layout = net.fresh({"front": (frame,), "action": (frame,)})
        here = net.layout.frame == frame
        assert torch.allclose(net(x[:, here], level[:, here], role[:, here], layout, prefix), whole[:, here], atol=1e-10)
        prefix = net.keep(x[:, here], level[:, here], role[:, here], layout, prefix)


def test_a_word_knows_its_own_mask_and_not_the_level_of_the_run():
    net = model(FRONT, TEXT)
    x, role = tokens(net), roles.full(2, net.layout.tokens)
    span = net.layout.span("text")
    x[:, span][:, 2] = 0.0
    level = torch.full(role.shape, 0.5, dtype=torch.float64)
    other = level.clone()
    other[:, span] = 0.1
    assert torch.equal(net(x, level, role), net(x, other, role))
    clean = denoiser(net, role)(x, level)[:, span]
    assert torch.allclose(clean.sum(dim=-1), torch.ones(2, 5, dtype=torch.float64))
    revealed = x.clone()
    revealed[:, span.start + 2, 0] = 1.0
    assert not torch.allclose(net(revealed, level, role)[:, span], net(x, level, role)[:, span])


def test_each_stream_has_its_own_mean_and_its_weight_counts():
    net = model(FRONT, TEXT).float()
    clean = tokens(net).float()
    total, means = stream_loss(net, StreamBatch(clean), StreamObjective(weights={"word": 0.5}), torch.Generator().manual_seed(0))
    assert float(total.detach()) == pytest.approx(means["front"] + 0.5 * means["text"], rel=1e-5)
    nothing = StreamBatch(clean, torch.zeros(clean.shape[:2], dtype=torch.bool))
    total, means = stream_loss(net, nothing, StreamObjective(), torch.Generator().manual_seed(0))
    assert means == {"front": 0.0, "text": 0.0}
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_a_shared_level_is_one_level_for_all_that_is_active():
    from uwm.core.patterns import draw

    drawn = draw(Pattern(shared=True, word="given"), Layout((FRONT, ACTION, TEXT)), 8, torch.Generator().manual_seed(0))
    active = drawn.role == roles.ACTIVE
    assert torch.equal(active, torch.arange(20)[None].expand(8, -1) < 15)
    assert (drawn.level[:, :15] == drawn.level[:, :1]).all() and drawn.level[:, 0].unique().numel() == 8
    assert (drawn.level[:, 15:] == 0).all()


def test_wrong_tokens_roles_and_words_are_refused():
    net = model(FRONT, TEXT)
    x, role = tokens(net), roles.full(2, net.layout.tokens)
    with unchecked_shapes():
        with pytest.raises(ValueError, match="tokens must be"):
            net(x[:, :-1], 0.5, role)
        with pytest.raises(ValueError, match="roles must be"):
            net(x, 0.5, role[:, :-1])
    with pytest.raises(ValueError, match="numbers from 0 to 6, got 0 to 7"):
        one_hot(torch.tensor([[0, 7]]), net.layout, "text")
    with pytest.raises(ValueError, match="frames count from 0"):
        Stream("a", "action", (-1, 0), 2, causal=True)
