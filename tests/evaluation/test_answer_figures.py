"""The line and the picture of a policy's answers, from figures as they are logged."""

from grmlight.evaluation.answer_figures import describe_answers, is_online, plot_answers

ONLINE = {
    "rollout/score": [(4, -0.1), (8, 0.9)],
    "rollout/score_std": [(4, 1.0), (8, 0.5)],
    "rollout/reward_proxy": [(4, -0.1), (8, 0.9)],
    "rollout/watch_gold": [(4, 0.0), (8, 0.456)],
    "rollout/kl": [(4, 0.0), (8, 2.42)],
    "rollout/kl_k3": [(4, 0.0), (8, 3.1)],
    "rollout/tokens": [(4, 7.7), (8, 7.3)],
    "train/loss": [(4, 1.0), (8, 0.5)],
}
SAMPLED = {
    "policy/kl_k1": [(0, 0.0), (19, 1.5)],
    "policy/gold": [(0, 0.1), (19, 0.6)],
    "policy/tokens": [(0, 8.0), (19, 9.0)],
}


def test_an_online_run_s_line_says_each_reward_once():
    assert describe_answers(ONLINE) == (
        "answers, step 4 to 8: score -0.10 to 0.90, watch_gold 0.00 to 0.46, "
        "KL 0.00 to 2.42 nats, length 7.70 to 7.30 tokens"
    )


def test_an_alignment_run_s_line_is_of_what_was_sampled():
    assert describe_answers(SAMPLED) == (
        "answers, step 0 to 19: gold 0.10 to 0.60, KL 0.00 to 1.50 nats, length 8.00 to 9.00 tokens"
    )


def test_a_reward_model_has_no_answers():
    assert describe_answers({"train/loss": [(0, 1.0)]}) == ""
    assert not is_online({"train/loss": [(0, 1.0)]})
    assert not is_online(SAMPLED)


def test_the_picture_shows_rewards_kl_and_length():
    assert is_online(ONLINE)
    rewards, kl, length = plot_answers(ONLINE).axes
    assert [line.get_label() for line in rewards.lines] == ["score", "watch_gold"]
    assert list(kl.lines[0].get_ydata()) == [0.0, 2.42]
    assert list(length.lines[0].get_ydata()) == [7.7, 7.3]
