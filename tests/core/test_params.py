from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.core import params
from pipeline.core.errors import UserError
from pipeline.core.variant import Variant
from tests.conftest import ROOT, Project


def test_the_projects_own_parameters_are_valid(tmp_project: Project) -> None:
    assert (tmp_project.root / "params.yaml").exists()
    settings = params.read()
    assert (settings.model, settings.corpus, settings.device) == ("tiny-en", "sample", "auto")
    assert settings.variants["fp32"] == Variant(backend="none", bits=32, format="float")
    assert settings.models["tiny-en"].source == "package"
    assert settings.corpora["librispeech"].splits == ["test-clean", "test-other"]
    assert settings.decoding.language == "en"
    assert settings.names[0] == "fp32"
    assert settings.names[-1] == "candidate"


def test_an_edit_of_the_candidate_changes_the_candidate_only(tmp_project: Project) -> None:
    before = params.read()
    tmp_project.set(backend="hqq", bits=4, granularity="group", group_size=128, symmetric=False)
    after = params.read()
    assert after.candidate == Variant(backend="hqq", bits=4, granularity="group", group_size=128, symmetric=False)
    assert after.variant("candidate") == after.candidate
    assert after.variants == before.variants


def test_every_key_that_may_be_missing_has_its_default(tmp_project: Project) -> None:
    tmp_project.set(variants={"fp32": {"backend": "none"}, "bare": {"backend": "quanto"}})
    assert params.read().variants["bare"] == Variant(
        backend="quanto",
        bits=8,
        format="int",
        activations="none",
        granularity=None,
        group_size=None,
        symmetric=None,
        double_quant=False,
        include=["*"],
        exclude=["proj_out"],
        encoder=None,
        decoder=None,
        layers=[],
        embedding=None,
        conv=None,
        rest="float16",
        budget=None,
        budget_mb=None,
    )


BACKENDS = "bnb, ct2, ggml, gptq, hqq, mixed, none, quanto, torch, torchao"
LAUGHS: Any = "x"  # a billion values; YAML writes them as aliases, in a few bytes
for _ in range(9):
    LAUGHS = [LAUGHS] * 10
SHOWN = f"[{'[...], ' * 6}...], "
HUB = {"source": "hub", "repo": "me/whisper", "files": {"config.json": None}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "tiny_en"}, "unknown model 'tiny_en' (did you mean 'tiny-en'?)"),
        ({"model": "large"}, "unknown model 'large' (known: base, small, tiny-en)"),
        ({"corpus": "libri"}, "unknown corpus 'libri' (did you mean 'librispeech'?)"),
        (
            {"calibration__corpus": "x"},
            "calibration: unknown corpus 'x' (known: librispeech, librispeech-hub, sample, silence, study, subset)",
        ),
        ({"backend": "quantoo"}, "candidate: unknown backend 'quantoo' (did you mean 'quanto'?)"),
        ({"backend": "x"}, f"candidate: unknown backend 'x' (known: {BACKENDS})"),
        ({"device": "gpu"}, "device is 'gpu', but it must be auto, cpu, cuda or cuda:N"),
        ({"device": 0}, "device is 0, but it must be auto, cpu, cuda or cuda:N"),
        ({"x": 1}, "params.yaml: unknown key 'x' (known: KEYS)"),
        ({"grup_size": 1}, "params.yaml: unknown key 'grup_size' (did you mean 'group_size'?)"),
        ({"bits": "four"}, "candidate: bits is 'four', but it must be a whole number"),
        ({"bits": True}, "candidate: bits is True, but it must be a whole number"),
        ({"bits": 4.0}, "candidate: bits is 4.0, but it must be a whole number"),
        ({"bits": 0}, "candidate: bits is 0, but at least 1 is needed"),
        ({"format": "int4"}, "candidate: format is 'int4', but it must be 'int', 'float', 'nf' or 'fp'"),
        (
            {"granularity": "row"},
            "candidate: granularity is 'row', but it must be 'tensor', 'channel' or 'group'",
        ),
        ({"symmetric": "yes"}, "candidate: symmetric is 'yes', but it must be true or false"),
        ({"exclude": "proj_out"}, "candidate: exclude is 'proj_out', but it must be a list"),
        (
            {"granularity": "channel", "group_size": 64},
            "candidate: group_size 64 goes with granularity 'group', not 'channel'",
        ),
        *(
            ({"layers": [rule]}, f"candidate: layers: {rule!r} is no pattern and bits; write it as '*.v_proj=8'")
            for rule in ("*.v_proj", "=8", "*.v_proj=", "*.v_proj=0", "*.v_proj=33", "*.v_proj=x", "*.v_proj=-8", "8")
        ),
        ({"layers": "*.v_proj=8"}, "candidate: layers is '*.v_proj=8', but it must be a list"),
        ({"encoder": 0}, "candidate: encoder is 0, but at least 1 is needed"),
        ({"decoder": "4"}, "candidate: decoder is '4', but it must be a whole number"),
        ({"embedding": 7}, "candidate: embedding is 7, but it must be 8, 6, 5 or 4"),
        ({"embedding": True}, "candidate: embedding is True, but it must be 8, 6, 5 or 4"),
        ({"conv": 4}, "candidate: conv is 4, but it must be 8"),
        ({"rest": "bfloat16"}, "candidate: rest is 'bfloat16', but it must be 'float16' or 'float32'"),
        (
            {"variants__mixed-50__rest": 16},
            "variant 'mixed-50': rest is 16, but it must be 'float16' or 'float32'",
        ),
        (
            {"variants__hqq-int4": {"backend": "hqq", "group": 64}},
            "variant 'hqq-int4': unknown key 'group' (did you mean 'group_size'?)",
        ),
        ({"variants__x": {"bits": 4}}, "variant 'x': the key 'backend' is missing"),
        ({"variants__x": None}, "variant 'x' is None, but it must be a map of keys to values"),
        ({"variants": {}}, "variants is empty; give at least one"),
        (
            {"variants": {"x": {"backend": "hqq"}}},
            "variants: 'fp32' (backend: none) is missing; every difference is measured against it",
        ),
        (
            {"variants__fp32__bits": 16},
            "variant 'fp32': bits is 16, but it must be 32: all sizes are told as shares of it",
        ),
        (
            {"variants__hqq.int4": {"backend": "hqq"}},
            "variants: the name 'hqq.int4' may hold only letters, digits and hyphens",
        ),
        (
            {f"variants__{'x' * 101}": {"backend": "hqq"}},
            f"variants: the name '{'x' * 20}'... has over 100 characters",
        ),
        ({"calibration__split": "../x"}, "calibration: the name '../x' may hold only letters, digits and hyphens"),
        ({"corpus": LAUGHS}, f"corpus is [{SHOWN * 6}...], but it must be a text"),
        ({"models__a/b": HUB}, "models: the name 'a/b' may hold only letters, digits and hyphens"),
        (
            {"variants__candidate": {"backend": "hqq"}},
            "variants: the name 'candidate' is taken; choose another",
        ),
        ({"models__mine": HUB}, "model 'mine': source 'hub' needs the key 'revision'"),
        ({"models__mine": {"source": "directory"}}, "model 'mine': source 'directory' needs the key 'path'"),
        (
            {"models__mine": {"source": "disk"}},
            "model 'mine': source is 'disk', but it must be 'hub', 'package' or 'directory'",
        ),
        (
            {"models__base__files": {"a.whl": 1}},
            "model 'base': files: a.whl is 1, but it must be a text",
        ),
        ({"corpora__sample__splits": []}, "corpus 'sample': splits is empty; give at least one"),
        (
            {"corpora__sample__splits": ["../x"]},
            "corpus 'sample': splits: the name '../x' may hold only letters, digits and hyphens",
        ),
        (
            {"corpora__sample__limit": 0},
            "corpus 'sample': limit is 0, but at least 1 is needed",
        ),
        ({"corpora__silence__limit": None}, "corpus 'silence': source 'generated' needs the key 'limit'"),
        ({"corpora__silence__seed": -1}, "corpus 'silence': seed is -1, but at least 0 is needed"),
        (
            {"calibration__corpus": "silence"},
            "calibration: corpus 'silence' is generated, and activation ranges learned without speech would not hold "
            "for it; calibrate on a corpus of speech",
        ),
        ({"corpora__librispeech__url": None}, "corpus 'librispeech': source 'openslr' needs the key 'url'"),
        (
            {"corpora__librispeech__utterances": {"test-claen": 2620}},
            "corpus 'librispeech': utterances: unknown split 'test-claen' (did you mean 'test-clean'?)",
        ),
        (
            {"corpora__librispeech__utterances": {"test-clean": 0}},
            "corpus 'librispeech': utterances: test-clean is 0, but at least 1 is needed",
        ),
        ({"corpora__librispeech-hub__repo": ""}, "corpus 'librispeech-hub': source 'hub' needs the key 'repo'"),
        (
            {"corpora__librispeech__utterances": {"test": "all"}},
            "corpus 'librispeech': utterances: test is 'all', but it must be a whole number",
        ),
        (
            {"corpora__librispeech__url": 5},
            "corpus 'librispeech': url is 5, but it must be a list or a text",
        ),
        (
            {"calibration__split": "librivox"},
            "calibration: split 'librivox' of corpus 'sample' is one that is scored; calibrate on another split, "
            "or the scores would be tuned on their own audio",
        ),
        ({"calibration__utterances": 0}, "calibration: utterances is 0, but at least 1 is needed"),
        ({"decoding__batch_size": 0}, "decoding: batch_size is 0, but at least 1 is needed"),
        ({"decoding__max_new_tokens": -1}, "decoding: max_new_tokens is -1, but at least 1 is needed"),
        ({"decoding__beams": 5}, "decoding: unknown key 'beams' (known: DECODING)"),
        ({"latency__utterances": 0}, "latency: utterances is 0, but at least 1 is needed"),
        ({"latency__threads": 0}, "latency: threads is 0, but at least 1 is needed"),
        *(
            (
                {"decoding__language": name},
                f"decoding: language is {name!r}, but it must be a language's code or 'auto' (did you mean {code!r}?)",
            )
            for name, code in (("german", "de"), ("German", "de"), ("hindi", "hi"))
        ),
        *(
            (
                {"decoding__language": language},
                "scoring: normalizer 'english' deletes and rewrites other languages' words, and decoding.language is "
                f"{language!r}; set scoring.normalizer to 'basic'",
            )
            for language in ("de", "auto")
        ),
        ({"decoding__task": "listen"}, "decoding: task is 'listen', but it must be 'transcribe' or 'translate'"),
        ({"scoring__resamples": 10**10}, "scoring: resamples is 10000000000, but at most 1000000 is possible"),
        (
            {"variants__-x": {"backend": "hqq"}},
            "variants: the name '-x' may hold only letters, digits and hyphens, and begin with a letter or digit",
        ),
        ({"scoring__resamples": 10}, "scoring: resamples is 10, but at least 1000 is needed"),
        (
            {"scoring__normalizer": "german"},
            "scoring: normalizer is 'german', but it must be 'english', 'basic' or 'none'",
        ),
    ],
)
def test_the_first_mistake_is_one_sentence(changes: dict[str, Any], sentence: str, tmp_project: Project) -> None:
    tmp_project.set(**changes)
    with pytest.raises(UserError) as error:
        params.read()
    keys = (
        "activations, backend, bits, budget, budget_mb, calibration, conv, corpora, corpus, decoder, decoding, device, "
        "double_quant, embedding, encoder, exclude, format, granularity, group_size, include, kernels, latency, "
        "layers, model, models, report, rest, review, scoring, symmetric, variants"
    )
    decoding = "batch_size, language, max_new_tokens, seed, suppress_non_speech, task"
    assert str(error.value) == sentence.replace("KEYS", keys).replace("DECODING", decoding)


NO_BUDGETS: list[Any] = [0, -1, 0.0, float("inf"), float("nan"), "50", True, [50]]


@pytest.mark.parametrize(
    ("key", "value"), [("budget", 101), *((key, value) for key in ("budget", "budget_mb") for value in NO_BUDGETS)]
)
def test_a_budget_that_is_none_is_one_sentence(key: str, value: Any, tmp_project: Project) -> None:
    tmp_project.set(**{key: value})
    with pytest.raises(UserError) as error:
        params.read()
    sentence = str(error.value)
    assert sentence.startswith(f"candidate: {key} is {value!r}, but ")
    assert not sentence.endswith("of another kind")  # which does not tell what would do


@pytest.mark.parametrize("value", [17, 17.2, 100, 0.5])
def test_a_budget_is_any_number_that_can_be_one(value: float, tmp_project: Project) -> None:
    """As `-S budget_mb=50` writes it: a whole number."""
    tmp_project.set(backend="mixed", budget=value)
    assert params.read().candidate.budget == value
    tmp_project.set(budget=None, budget_mb=value)
    assert params.read().candidate.budget_mb == value


def test_the_bits_of_a_layer_are_those_of_its_last_rule_its_part_or_the_variants() -> None:
    rules = ["*.v_proj=8", "model.decoder.*.v_proj=6", "*.0.fc1=3"]
    variant = Variant("gptq", 4, encoder=5, layers=rules)
    bits = {
        "model.encoder.layers.1.fc2": 5,
        "model.decoder.layers.1.fc2": 4,
        "model.encoder.layers.1.self_attn.v_proj": 8,
        "model.decoder.layers.1.encoder_attn.v_proj": 6,
        "model.encoder.layers.0.fc1": 3,
        "model.decoder.layers.0.fc1": 3,
        "proj_out": 4,
    }
    assert {layer: variant.bits_of(layer) for layer in bits} == bits
    assert Variant("gptq", 4, encoder=5, decoder=3).bits_of("model.decoder.layers.0.fc1") == 3
    assert Variant("gptq", 4, layers=rules[::-1]).bits_of("model.decoder.layers.1.self_attn.v_proj") == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"decoding__language": "de", "scoring__normalizer": "basic"},
        {"decoding__language": "auto", "scoring__normalizer": "none"},
        {"decoding__language": "de", "decoding__task": "translate"},
    ],
)
def test_other_languages_go_with_other_normalizers(changes: dict[str, Any], tmp_project: Project) -> None:
    """German words that count as right although they are missing: "um" is a filler in English. Translations are so."""
    tmp_project.set(**changes)
    params.read()


KEYS = ["model", "corpus", "device", "backend", "variants", "decoding", "scoring"]


@pytest.mark.parametrize(("name", "key"), [*(("params.yaml", key) for key in KEYS), ("catalog.yaml", "corpora")])
def test_a_missing_key_is_one_sentence(name: str, key: str, tmp_project: Project) -> None:
    file = tmp_project.root / name
    raw = YAML(typ="safe").load(file.read_text())
    del raw[key]
    YAML(typ="safe").dump(raw, file)
    with pytest.raises(UserError) as error:
        params.read()
    assert str(error.value) == f"{name}: the key {key!r} is missing"


@pytest.mark.parametrize(
    ("name", "line"), [("params.yaml", "models: {}"), ("catalog.yaml", "limit: 5"), ("catalog.yaml", "7: x\nlimit: 5")]
)
def test_a_key_in_the_other_file_is_one_sentence(name: str, line: str, tmp_project: Project) -> None:
    with (tmp_project.root / name).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError) as error:
        params.read()
    key = int(first) if (first := line.split(":")[0]).isdigit() else first
    assert str(error.value) == f"{name}: {key!r} does not belong here; catalog.yaml holds models and corpora alone"


def test_a_misspelt_key_is_told_before_the_one_that_is_missing_for_it(tmp_project: Project) -> None:
    file = tmp_project.root / "params.yaml"
    file.write_text(file.read_text().replace("\ndevice:", "\ndevise:"))
    with pytest.raises(UserError) as error:
        params.read()
    assert str(error.value) == "params.yaml: unknown key 'devise' (did you mean 'device'?)"


@pytest.mark.parametrize(
    ("line", "place"), [("5: x", "params.yaml: the key 5"), ("latency: {5: 1}", "latency: the key 5")]
)
def test_a_key_that_is_no_text_is_one_sentence(line: str, place: str, tmp_project: Project) -> None:
    raw = YAML(typ="safe").load((tmp_project.root / "params.yaml").read_text())
    YAML(typ="safe").dump(raw | YAML(typ="safe").load(line), tmp_project.root / "params.yaml")
    with pytest.raises(UserError) as error:
        params.read()
    assert str(error.value) == f"{place} is no text; write it in quotes, or remove it"


@pytest.mark.parametrize("content", [b"model: \xff\xfe", b"model: \x00", None])
def test_a_file_that_is_no_text_is_one_sentence(content: bytes | None, tmp_project: Project) -> None:
    file = tmp_project.root / "params.yaml"
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(UserError) as error:
        params.read()
    assert str(error.value).startswith("params.yaml ")
    assert "\n" not in str(error.value)


def test_a_name_that_yaml_takes_for_a_number_wants_quotes(tmp_project: Project) -> None:
    raw = YAML(typ="safe").load((tmp_project.root / "params.yaml").read_text())
    tmp_project.set(variants={**raw["variants"], 4: {"backend": "hqq"}})
    with pytest.raises(UserError) as error:
        params.read()
    assert str(error.value) == 'variants: the name 4 is no text; write "4" in quotes, or a word such as int4'


def test_an_unknown_variant_is_one_sentence(tmp_project: Project) -> None:
    tmp_project.set(variants={"fp32": {"backend": "none"}, "hqq-int4": {"backend": "hqq"}})
    with pytest.raises(UserError) as error:
        params.read().variant("hqq-int")
    assert str(error.value) == "unknown variant 'hqq-int' (did you mean 'hqq-int4'?)"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "params.yaml holds no keys; restore it with 'git checkout params.yaml'"),
        ("- a list\n", "params.yaml holds no keys; restore it with 'git checkout params.yaml'"),
        ("model: [\ncorpus: x", "params.yaml, line 2 is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        (None, "params.yaml is not here; run the pipeline from the project's top folder"),
        ("model: " + "[" * 10_000, "params.yaml is nested too deeply; restore it with git"),
        (
            "model: 2026-02-31",
            "params.yaml is not valid YAML: a value cannot be read (day is out of range for month); correct it, or "
            "restore the file with git",
        ),
    ],
)
def test_a_file_that_is_none_is_one_sentence(
    text: str | None, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge conflict, a broken download, a value that YAML takes for a date: a traceback from inside its reader."""
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("params.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        params.read()
    assert str(error.value) == sentence


def test_a_project_without_its_catalog_is_one_sentence(tmp_project: Project) -> None:
    (tmp_project.root / "catalog.yaml").unlink()
    with pytest.raises(UserError) as error:
        params.read()
    assert str(error.value) == "catalog.yaml is not here; run the pipeline from the project's top folder"


@pytest.mark.parametrize(
    ("name", "override", "change"),
    [
        ("params.yaml", "bits=4", ("bits: 8", "bits: 4")),
        ("catalog.yaml", "corpora.silence.limit=72", None),
    ],
)
def test_an_experiment_changes_one_line_of_the_file(
    name: str, override: str, change: tuple[str, str] | None, tmp_path: Path
) -> None:
    """DVC rewrites the whole file: it must stand in the form that DVC writes, or each experiment is a diff of pages."""
    from dvc.utils.hydra import apply_overrides

    file = tmp_path / name
    before = (ROOT / name).read_text(encoding="utf-8")
    file.write_text(before, encoding="utf-8")
    apply_overrides(file, [override])
    pairs = zip(before.splitlines(), file.read_text(encoding="utf-8").splitlines(), strict=True)
    changed = [(old, new) for old, new in pairs if old != new]
    assert len(changed) == 1
    assert changed == [change or (changed[0][0], changed[0][0].replace("36", "72"))]


@pytest.mark.parametrize("name", ["candidate", "baseline"])
def test_names_of_other_folders_are_taken(tmp_project: Project, name: str) -> None:
    tmp_project.set(**{f"variants__{name}": {"backend": "hqq"}})
    with pytest.raises(UserError) as error:
        params.read()
    assert str(error.value) == f"variants: the name {name!r} is taken; choose another"
