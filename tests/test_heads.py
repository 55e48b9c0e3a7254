"""Heads over an encoder: answers are real columns, classes come from real tokens alone."""

import pytest
import torch
from tiny import model
from torch.nn import functional

from lightning_modules.transformer.heads import Classifier, SpanReader

SOURCE = torch.tensor([[9, 300, 41, 500, 7, 12], [17, 18, 19, 0, 0, 0], [22, 0, 0, 0, 0, 0]])
REAL = SOURCE != 0


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "relative"])
def test_an_answer_never_lies_in_padding_and_padding_changes_no_score(positions: str) -> None:
    torch.manual_seed(0)
    reader = SpanReader(model(architecture="encoder", positions=positions)).eval()
    score_B2S = reader(SOURCE, REAL)
    assert score_B2S.shape == (3, 2, 6)
    assert (score_B2S[~REAL[:, None].expand(3, 2, 6)] == float("-inf")).all()
    assert score_B2S[REAL[:, None].expand(3, 2, 6)].isfinite().all()
    for row, length in enumerate((6, 3, 1)):
        alone = reader(SOURCE[row : row + 1, :length])
        torch.testing.assert_close(score_B2S[row : row + 1, :, :length], alone, atol=1e-5, rtol=1e-5)


def test_first_and_last_have_scores_of_their_own_and_learn() -> None:
    torch.manual_seed(0)
    reader = SpanReader(model(architecture="encoder")).train()
    first_B, last_B = torch.tensor([1, 0, 0]), torch.tensor([3, 2, 0])
    optimizer, losses = torch.optim.Adam(reader.parameters(), lr=3e-3), []
    for _ in range(30):
        score_B2S = reader(SOURCE, REAL)
        loss = functional.cross_entropy(score_B2S[:, 0], first_B) + functional.cross_entropy(score_B2S[:, 1], last_B)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in reader.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    assert reader(SOURCE, REAL).argmax(-1).T.tolist() == [first_B.tolist(), last_B.tolist()]


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "relative"])
def test_a_class_comes_from_the_mean_of_the_real_tokens(positions: str) -> None:
    torch.manual_seed(0)
    classifier = Classifier(model(architecture="encoder", positions=positions), "abcde").eval()
    scores = classifier(SOURCE, REAL)
    assert scores.shape == (3, 5)
    for row, length in enumerate((6, 3, 1)):
        alone = classifier(SOURCE[row : row + 1, :length])
        torch.testing.assert_close(scores[row : row + 1], alone, atol=1e-5, rtol=1e-5)
        mean = classifier.encoder(SOURCE[row : row + 1, :length])[0].mean(0)
        torch.testing.assert_close(alone[0], classifier.classes(mean), atol=1e-5, rtol=1e-5)
    other = torch.where(REAL, SOURCE, 77)
    assert torch.equal(classifier(other, REAL), scores)
