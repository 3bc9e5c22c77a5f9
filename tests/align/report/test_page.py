import string

from hypothesis import given, settings
from hypothesis import strategies as st

from align.report.page import gains, last_written, notes, render
from align.runs.run_files import Run, StageFiles

KEYS = ["step", "time", "loss", "prompt", "reply", "category", "tags", "sft_reply", "ppo_reply", "sft_gold", "ppo_gold"]
KEYS += ["sampled", "chosen", "rejected", "chosen_score", "rejected_score", "headline", "by_tag", "accuracy", "pairs"]
KEYS += ["tokens", "grade", "source", "by_grade", "length_rule", "calibration_error", "temperature", "reliability"]
KEYS += ["seconds", "judge", "gold_gain", "gold_range", "seed", "reference", "heldout_loss", "score", "finished"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_letters, max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
ROWS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=12)
STAGE = st.tuples(ROWS, *(st.lists(ROWS, max_size=3) for _ in range(3)), st.text(max_size=5))
STAGES = ("base", "sft", "pmp", "rm", "ppo")


def run_of(recipe=None, **stages) -> Run:
    return Run("n", {}, {name: stages.get(name, StageFiles(name)) for name in STAGES}, recipe or {}, [])


@settings(max_examples=12, deadline=None)
@given(st.lists(STAGE, min_size=5, max_size=5), ROWS)
def test_any_json_makes_a_page(found, whole):
    stages = {name: StageFiles(name, *parts) for name, parts in zip(STAGES, found, strict=True)}
    page = render(Run("n", whole, stages, {}, []), {})
    assert page.rstrip().endswith("</html>") and page.encode("utf-8")


def test_a_section_says_what_it_lacks():
    sft = StageFiles("sft", {"heldout_loss": 1.0}, [{"step": 1}])
    ppo = StageFiles("ppo", metrics=[{"step": 7}])
    run = run_of({"base": {}, "pmp": None, "rm": None}, sft=sft, ppo=ppo)
    assert notes(run, "supervised") == ["base has not run yet."]
    assert notes(run, "reward") == ["Neither pmp nor rm is here."]
    assert notes(run, "ppo") == ["ppo is unfinished, at step 7."]
    assert notes(run, "outcome") == ["ppo is unfinished, at step 7.", "ppo/eval.jsonl is missing or empty."]
    assert notes(run_of(), "ppo") == ["No ppo stage is here."]


def test_gains_are_told_with_their_intervals():
    interval = {"difference": 0.5, "low": 0.25, "high": 0.75}
    summary = {"gold_gain": interval, "correct_gain_sampled": interval, "gain_of": 3, "x_gain": {"low": 1}}
    assert gains(run_of(ppo=StageFiles("ppo", summary))) == [
        "gold, greedy: +0.500 [+0.250, +0.750]",
        "correct, temperature 1: +0.500 [+0.250, +0.750]",
    ]


def test_the_time_of_the_last_figure():
    assert (
        last_written(run_of(sft=StageFiles("sft", metrics=[{"time": 0}, {"time": 1795228443.9}])))
        == "2026-11-21 02:34 UTC"
    )
    assert last_written(run_of()) == ""
    assert last_written(run_of(sft=StageFiles("sft", metrics=[{"time": 1e300}]))) == ""


def test_samples_of_ppo_are_shown_token_by_token_and_escaped():
    row = {"prompt": "p", "reply": "<i> 4", "tokens": [["<i>", -2.5], [" 4", 0.1]]}
    page = render(run_of(ppo=StageFiles("ppo", samples=[row])), {})
    assert '<span class="down3" title="-2.50 nats">&lt;i&gt;</span><span title="+0.10 nats"> 4</span>' in page
    assert "Tokens that the policy likes more" in page and ".down3 {" in page
    plain = render(run_of(sft=StageFiles("sft", samples=[{"prompt": "p", "reply": "r"}])), {})
    assert "Tokens that the policy" not in plain and '<div class="said">r</div>' in plain


def test_held_out_pairs_are_shown_escaped():
    row = {"chosen": "<script>x</script>", "rejected": "错 & b", "chosen_score": 0.0, "rejected_score": 2.0}
    row |= {"prompt": "1 < 2?", "tags": ["<i>"], "grade": 1}
    page = render(run_of(rm=StageFiles("rm", {"calibration_error": 0.25}, evals=[row])), {})
    assert "The pairs that rm gets most wrong" in page and "Held-out accuracy of rm" in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page and "<script>" not in page and "<i>" not in page
    assert "错 &amp; b" in page and "1 &lt; 2?" in page and "rm: expected calibration error 25.0 %" in page
