import numpy as np
import pytest
import torch

from uwm.media import judges

sklearn = pytest.importorskip("sklearn")


def test_a_judge_of_digits_knows_them_and_does_not_know_noise():
    from sklearn.datasets import load_digits

    told = load_digits()
    images = torch.from_numpy(told.images).float()
    judge = judges.of_classes(images, told.target)
    assert judge.score > 0.97
    assert (judge(images[:100]) == told.target[:100]).mean() > 0.97
    noise = torch.rand(200, 8, 8, generator=torch.Generator().manual_seed(0)) * 16
    assert (judge(noise) == np.arange(200) % 10).mean() < 0.25
    shuffled = judges.of_classes(images, np.random.default_rng(0).permutation(told.target))
    assert shuffled.score < 0.25, "the score is of what was held out: a judge that learned by heart is found out"


def test_a_judge_of_places_finds_a_spot():
    generator = np.random.default_rng(0)
    places = generator.uniform(2, 13, (1500, 2)).astype(np.float32)
    y, x = np.mgrid[:16, :16]
    spot = np.exp(-((x - places[:, :1, None]) ** 2 + (y - places[:, 1:, None]) ** 2) / 4).astype(np.float32)
    judge = judges.of_places(torch.from_numpy(spot), places)
    assert judge.score > 0.9
    assert np.abs(judge(torch.from_numpy(spot[:200])) - places[:200]).mean() < 0.8
    layers = judge.layers(torch.from_numpy(spot[:200]))
    assert [layer.shape for layer in layers] == [(200, 128), (200, 64)]
    last = layers[-1].numpy() @ judge.machine.coefs_[-1] + judge.machine.intercepts_[-1]
    assert np.allclose(last, judge(torch.from_numpy(spot[:200])), atol=1e-4), "what it says is made of its last hidden layer"


def test_a_judge_of_classes_has_no_layers():
    judge = judges.of_classes(torch.rand(40, 4, generator=torch.Generator().manual_seed(0)), np.arange(40) % 2)
    with pytest.raises(TypeError, match="only a judge of places has hidden layers, this one is a SVC"):
        judge.layers(torch.zeros(1, 4))


@pytest.mark.parametrize("count, held_out", [(9, 0.3), (10, 0.0), (10, 1.0), (10, 0.01)])
def test_a_judge_without_answers_or_without_a_held_out_part_is_refused(count, held_out):
    with pytest.raises(ValueError, match="held out"):
        judges.of_classes(torch.zeros(10, 4), np.zeros(count, int), held_out)
