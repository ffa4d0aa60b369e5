"""Loss, perplexity, divergence and agreement against closed forms."""

from __future__ import annotations

from math import inf, isnan, log, nan
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import nn

from spectrim.errors import SpectrimError
from spectrim.metrics import Reading, read, windows
from spectrim.metrics.divergence import divergence
from spectrim.metrics.perplexity import perplexity

VOCABULARY = 13


class Unigram(nn.Module):
    """Predicts the same distribution everywhere."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(logits)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache and not torch.is_grad_enabled() and not self.training
        return SimpleNamespace(logits=self.row.expand(*input_ids.shape, -1))


class Copying(nn.Module):
    """Is sure that the next token is the present one."""

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        logits = 30.0 * nn.functional.one_hot(input_ids, VOCABULARY).to(torch.bfloat16)
        return SimpleNamespace(logits=logits)


def uniform() -> Unigram:
    return Unigram(torch.zeros(VOCABULARY))


def some_ids(sequences: int = 4, length: int = 50) -> torch.Tensor:
    return torch.randint(VOCABULARY, (sequences, length), generator=torch.manual_seed(0))


def test_uniform_logits_lose_the_log_of_the_vocabulary() -> None:
    score = perplexity(uniform(), some_ids())
    assert score.value == pytest.approx(VOCABULARY, rel=1e-6)
    assert score.interval == pytest.approx((VOCABULARY, VOCABULARY), rel=1e-6)
    assert (score.n, score.settings["tokens"]) == (4, 4 * 49)
    assert read([uniform()], some_ids()).losses.sum() / (4 * 49) == pytest.approx(log(VOCABULARY))


def test_a_copying_model_is_certain_of_repetition_and_wrong_on_change() -> None:
    repeated = torch.full((2, 9), 5)
    alternating = torch.tensor([[1, 2] * 5])
    assert perplexity(Copying(), repeated).value == pytest.approx(1.0)
    reading = read([Copying()], alternating)
    assert reading.mean(reading.losses[0]) == pytest.approx(30.0)


def test_identical_models_do_not_diverge_and_always_agree() -> None:
    model = Unigram(torch.randn(VOCABULARY))
    kl, agreement, jensen_shannon = divergence(model, model, some_ids())
    assert (kl.value, agreement.value, jensen_shannon.value) == (0.0, 1.0, 0.0)
    assert kl.interval == (0.0, 0.0)


def test_divergence_between_two_known_distributions() -> None:
    p, q = torch.randn(2, VOCABULARY, generator=torch.manual_seed(1)).softmax(-1)
    kl, agreement, jensen_shannon = divergence(Unigram(p.log()), Unigram(q.log()), some_ids())
    assert kl.value == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    middle = (p + q) / 2
    halves = [float((one * (one / middle).log()).sum()) for one in (p, q)]
    assert jensen_shannon.value == pytest.approx(sum(halves) / 2, rel=1e-5)
    assert agreement.value == float(p.argmax() == q.argmax())


def test_agreement_is_the_share_of_equal_first_choices() -> None:
    constant = Unigram(nn.functional.one_hot(torch.tensor(5), VOCABULARY).float())
    ids = torch.tensor([[5, 5, 5, 1, 2]])
    assert divergence(Copying(), constant, ids)[1].value == pytest.approx(3 / 4)


def test_models_that_exclude_each_other_are_as_far_apart_as_can_be() -> None:
    one, other = torch.full((2, VOCABULARY), -inf)
    one[3], other[4] = 0.0, 0.0
    kl, agreement, jensen_shannon = divergence(Unigram(one), Unigram(other), some_ids())
    assert (kl.value, agreement.value) == (inf, 0.0)
    assert jensen_shannon.value == pytest.approx(log(2))


def test_flips_count_tokens_lost_and_gained() -> None:
    constant = Unigram(nn.functional.one_hot(torch.tensor(5), VOCABULARY).float())
    reading = read([Copying(), constant], torch.tensor([[5, 5, 5, 1, 1, 5]]))
    assert reading.right[:, 0].tolist() == [3, 3]  # copying knows 5 5 1; the constant 5 5 5
    assert (float(reading.lost[1, 0]), float(reading.gained[1, 0])) == (1, 1)
    again = Reading.of_rows(reading.rows())
    assert torch.equal(again.lost, reading.lost) and torch.equal(again.losses, reading.losses)


def test_a_token_that_is_impossible_for_both_adds_nothing() -> None:
    row = torch.randn(VOCABULARY)
    row[3] = -inf
    kl, _, jensen_shannon = divergence(Unigram(row), Unigram(row.clone()), some_ids())
    assert (kl.value, jensen_shannon.value) == (0.0, 0.0)


def test_a_model_that_gives_nan_is_not_scored_as_if_it_did_not() -> None:
    kl, *_ = divergence(Unigram(torch.full((VOCABULARY,), nan)), uniform(), some_ids())
    assert isnan(kl.value)
    assert isnan(perplexity(Unigram(torch.full((VOCABULARY,), nan)), some_ids()).value)


def test_an_absurd_loss_is_infinite_perplexity_and_no_crash() -> None:
    row = torch.zeros(VOCABULARY)
    row[0] = 1e4
    assert perplexity(Unigram(row), torch.ones(2, 5, dtype=torch.long)).value == inf


@pytest.mark.parametrize(("batch", "chunk"), [(1, 1), (1, 7), (3, 128), (8, 49)])
def test_batch_and_chunk_change_nothing(batch: int, chunk: int) -> None:
    pair = [Unigram(torch.randn(VOCABULARY, generator=torch.manual_seed(i))) for i in range(2)]
    one = read(pair, some_ids())
    other = read(pair, some_ids(), batch=batch, chunk=chunk)
    assert torch.equal(one.tokens, other.tokens)
    torch.testing.assert_close(one.losses, other.losses)
    torch.testing.assert_close(one.divergences, other.divergences)
    assert torch.equal(one.agreements, other.agreements)


def test_distributions_are_held_for_a_chunk_only(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    original = torch.Tensor.log_softmax

    def watched(self: torch.Tensor, *args: int) -> torch.Tensor:
        held.append(self.shape[0])
        return original(self, *args)

    monkeypatch.setattr(torch.Tensor, "log_softmax", watched)
    read([uniform(), uniform()], some_ids(), batch=4, chunk=16)
    assert max(held) == 16
    assert sum(held) == 2 * 4 * 49


@pytest.mark.parametrize(("length", "window", "stride"), [(100, 10, 3), (97, 20, 19), (31, 30, 1)])
def test_overlapping_windows_score_every_token_once(length: int, window: int, stride: int) -> None:
    # Every token costs a different power of two, so a sum tells which tokens were counted.
    ids = torch.arange(length) % VOCABULARY
    row = torch.randn(VOCABULARY, dtype=torch.float64, generator=torch.manual_seed(2))
    costs = -row.float().log_softmax(-1).double()
    cut = windows(ids, window, stride)
    reading = read([Unigram(row.float())], cut, stride=stride)
    used = window + (len(cut) - 1) * stride
    assert length - used < stride
    assert reading.tokens.sum() == used - 1
    assert float(reading.losses.sum()) == pytest.approx(float(costs[ids[1:used]].sum()), rel=1e-6)


def test_windows_side_by_side_leave_out_each_first_token() -> None:
    cut = windows(torch.arange(35), 10, 10)
    assert cut.tolist() == [list(range(10 * i, 10 * i + 10)) for i in range(3)]
    ids = cut % VOCABULARY
    beside, alone = read([uniform()], ids, stride=10), read([uniform()], ids)
    assert beside.tokens.tolist() == alone.tokens.tolist() == [9, 9, 9]


@pytest.mark.parametrize(
    ("length", "window", "stride", "message"),
    [
        (5, 10, 10, r"the text has 5 tokens and a window needs 10; give a longer text or a"),
        (50, 1, 1, r"a window of 1 tokens predicts nothing; give at least 2"),
        (50, 10, 11, r"a stride of 11 tokens; expected 1 to the window's 10"),
        (50, 10, 0, r"a stride of 0 tokens; expected 1 to the window's 10"),
    ],
)
def test_impossible_windows(length: int, window: int, stride: int, message: str) -> None:
    with pytest.raises(SpectrimError, match=message):
        windows(torch.arange(length), window, stride)


@pytest.mark.parametrize("shape", [(0, 8), (3, 1)])
def test_nothing_to_read(shape: tuple[int, int]) -> None:
    message = r"token windows of shape .*; expected \[sequences, length >= 2\]"
    with pytest.raises(SpectrimError, match=message):
        read([uniform()], torch.zeros(shape, dtype=torch.long))


def test_the_interval_is_students_over_sequences() -> None:
    sums = torch.randn(6, dtype=torch.float64, generator=torch.manual_seed(3)) + 40
    reading = Reading(torch.full((6,), 20), *[sums[None]] * 7)
    means = (sums / 20).numpy()
    expected = stats.t.interval(0.95, 5, means.mean(), stats.sem(means))
    assert reading.interval(sums) == pytest.approx(expected)


def test_one_sequence_has_no_interval() -> None:
    assert perplexity(uniform(), some_ids(sequences=1)).interval is None


def test_modes_are_put_back_even_after_an_error() -> None:
    model = uniform().train()
    read([model], some_ids())
    assert model.training
    with pytest.raises(TypeError):
        read([model, nn.Identity()], some_ids())
    assert model.training


def test_progress_counts_windows() -> None:
    seen: list[tuple[int, int]] = []
    perplexity(uniform(), some_ids(), batch=3, progress=lambda *args: seen.append(args))
    assert seen == [(3, 4), (4, 4)]
