import string

from hypothesis import given, settings
from hypothesis import strategies as st

from align.report.page import alignment_tax, last_written, made_with, notes_of_outcome, render, sections
from align.runs.run_files import Run, StageFiles

KEYS = ["step", "time", "loss", "prompt", "reply", "category", "tags", "sft_reply", "ppo_reply", "sft_gold", "ppo_gold"]
KEYS += ["sampled", "chosen", "rejected", "chosen_score", "rejected_score", "headline", "by_tag", "accuracy", "pairs"]
KEYS += ["tokens", "grade", "source", "by_grade", "length_rule", "calibration_error", "temperature", "reliability"]
KEYS += ["score/mean", "verdicts", "sft_correct", "ppo_correct", "origins", "judged_by", "made_with", "win", "correct"]
KEYS += ["before", "after", "difference", "tasks", "documents", "kl/reply", "entropy", "end_rate", "score/std"]
KEYS += ["value/loss", "policy/clipped", "policy/grad_norm", "eval/score", "kl", "reply_tokens", "optimizer_steps"]
KEYS += ["selection"]
KEYS += ["seconds", "judge", "gold_gain", "gold_range", "seed", "reference", "heldout_loss", "score", "finished"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_letters, max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
ROWS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=12)
STAGE = st.tuples(
    ROWS, *(st.lists(ROWS, max_size=3) for _ in range(3)), st.text(max_size=5), st.lists(ROWS, max_size=3)
)
STAGES = ("base", "sft", "pmp", "rm", "ppo")


def run_of(recipe=None, **stages) -> Run:
    return Run("n", {}, {name: stages.get(name, StageFiles(name)) for name in STAGES}, recipe or {}, [])


@settings(max_examples=8, deadline=None)
@given(st.lists(STAGE, min_size=5, max_size=5), ROWS)
def test_any_json_makes_a_page(found, whole):
    stages = {name: StageFiles(name, *parts) for name, parts in zip(STAGES, found, strict=True)}
    page = render(Run("n", whole, stages, {}, [], whole), {})
    assert page.rstrip().endswith("</html>") and page.encode("utf-8")


def test_a_section_says_what_it_lacks_and_one_without_stages_is_none():
    sft = StageFiles("sft", {"heldout_loss": 1.0}, [{"step": 1}])
    ppo = StageFiles("ppo", metrics=[{"step": 7}])
    recipe = {"base": {}, "pmp": None, "rm": None, "ppo": {"eval_data": ["held_out.jsonl"]}}
    run = run_of(recipe, sft=sft, ppo=ppo)
    assert {name: notes for name, (_, notes) in sections(run).items()} == {
        "supervised": ["base has not run yet."],
        "ppo": ["ppo is unfinished, at step 7."],
    }
    assert notes_of_outcome(run) == ["ppo is unfinished, at step 7; it is compared with its start at its end."]
    assert sections(run_of()) == {} and notes_of_outcome(run_of()) == []
    page = render(run, {})
    assert 'href="#reward"' not in page and 'id="reward"' not in page and "Rejection sampling</h2>" not in page


def test_rows_that_a_stage_chose_are_told():
    dropped = {"over the budget": 4, "semantic duplicate": 1, "": "x"}
    sft = StageFiles("sft", {"selection": {"rows": 10, "kept": 5, "dropped": dropped}}, [{"step": 1}])
    notes = sections(run_of({"sft": {}}, sft=sft))["supervised"][1]
    assert notes == [
        "sft chose 5 of 10 rows (4 over the budget, 1 semantic duplicate); sft/selection/index.html shows them."
    ]


def test_what_a_run_was_made_with():
    made = {
        "align": "0.1.0",
        "commit": "0123456789ab",
        "torch": "2.13.0",
        "command": "align run a.yaml",
        "processes": 1,
    }
    later = made | {"hardware": "1 × NVIDIA H200", "command": "align run a.yaml ppo.kl_coef=0.1"}
    run = run_of(
        sft=StageFiles("sft", {"seconds": 20.4, "made_with": made}),
        ppo=StageFiles("ppo", {"seconds": 40, "made_with": later, "peak_memory_gib": 0.5}),
    )
    assert dict(made_with(run)) == {
        **{"align": "0.1.0", "commit": "0123456789ab", "torch": "2.13.0", "processes": "1"},
        **{"hardware": "1 × NVIDIA H200", "seconds": "60 (sft 20, ppo 40)", "peak memory": "0.5 GiB"},
        "command": "sft: align run a.yaml; ppo: align run a.yaml ppo.kl_coef=0.1",
    }
    page = render(run, {})
    assert "60 s · 1 × NVIDIA H200 · align 0.1.0 (0123456789ab)" in page
    assert made_with(run_of(sft=StageFiles("sft", {"made_with": [3]}))) == []  # of an older version, or torn


def test_the_alignment_tax_is_a_table_where_it_was_measured():
    change = {"difference": 0.0625, "low": 0.03125, "high": 0.09375}
    found = {
        "before": {"model": "base", "path": "/home/me/base", "loss": 2.5, "bits_per_byte": 1.0},
        "after": {"model": "ppo", "path": "/home/me/ppo", "loss": 2.5625, "bits_per_byte": "torn"},
        "difference": {"loss": change, "bits_per_byte": None},
        **{"documents": 20, "tokens": 5000, "source": ["held out by /home/me/base"]},
        "tasks": {"arc_easy": {"acc": {"before": 0.5, "after": 0.25, **change}, "torn": 3}, "torn": []},
    }
    rows = [(row.measured, row.before, row.after, row.difference, row.interval) for row in alignment_tax(found).rows]
    assert rows == [
        ("held-out loss, nats a token", "2.5", "2.562", "+0.0625", "[+0.0312, +0.0938]"),
        ("arc_easy: acc", "0.5", "0.25", "+0.0625", "[+0.0312, +0.0938]"),
    ]
    page = render(Run("n", {}, run_of().stages, {}, [], found), {})
    assert "what ppo forgot of base" in page and "20 documents, 5000 tokens" in page and "/home/me" not in page
    assert alignment_tax({}) is None and alignment_tax({"before": 3, "after": [], "tasks": "x"}) is None


def test_a_page_of_long_replies_everywhere_stays_under_2_mb():
    long = "One word after another. " * 500
    replies = {f"{who}_{key}": value for who in ("sft", "ppo") for key, value in (("reply", long), ("gold", 0))}
    pairs = [{"prompt": long, "chosen": long, "rejected": long, "chosen_score": 0, "rejected_score": 1}] * 20
    tokens = [[word, 0.6] for word in long.split()]
    sampled = {"prompt": long, "reply": long, "reference": long, "tokens": tokens, "step": 1}
    run = run_of(
        ppo=StageFiles("ppo", evals=[{"prompt": long, **replies}] * 300, samples=[sampled] * 20),
        **{name: StageFiles(name, evals=pairs) for name in ("pmp", "rm")},
        **{name: StageFiles(name, samples=[sampled] * 20) for name in ("base", "sft")},
    )
    page = render(run, {})
    assert len(page.encode()) < 1_800_000 and "more are in ppo/eval.jsonl" in page  # and the plots take a tenth of that


def test_the_doctor_speaks_on_the_page():
    lines = [{"step": step, "score/mean": 1.0, "score/std": 0.0, "kl/reply": 0.1} for step in range(1, 20)]
    page = render(run_of(ppo=StageFiles("ppo", metrics=lines)), {})
    assert 'id="doctor"' in page and "could not look" in page and 'class="finding"' in page
    assert 'id="doctor"' not in render(run_of(sft=StageFiles("sft", metrics=[{"step": 1, "loss": 1.0}])), {})


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
    assert "The pairs that rm gets most wrong, by their labels" in page and "Held-out accuracy of rm" in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page and page.count("<script>") == 1 and "<i>" not in page
    assert "错 &amp; b" in page and "1 &lt; 2?" in page and "25.0 % with the scores as they are" in page
