"""The workflows hold what they promise, as far as a machine without GitHub can tell: linters, pins, rights, order."""

import datetime
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT

BIN = Path(sys.executable).parent
GITHUB = ROOT / ".github"
WORKFLOWS = {path.stem: YAML(typ="safe").load(path) for path in sorted((GITHUB / "workflows").glob("*.yml"))}
JOBS = [(name, key, job) for name, workflow in WORKFLOWS.items() for key, job in workflow["jobs"].items()]
STEPS = [(name, key, step) for name, key, job in JOBS for step in job.get("steps", [])]
RUNS = [(f"{name}.{key}: {step['name']}", step["run"]) for name, key, step in STEPS if "run" in step]
TEXT = "\n".join(path.read_text() for path in sorted((GITHUB / "workflows").glob("*.yml")))

# Everything beyond GITHUB_TOKEN, which comes by itself.
SECRETS = {
    "ci": {"PHOTOGRAPHS_URL"},
    "publish": {"CATSDOGS_KEY", "PHOTOGRAPHS_URL"},
    "cd": {"CATSDOGS_KEY"},
    "data": {"DVC_ACCESS_KEY_ID", "DVC_SECRET_ACCESS_KEY"},
}
# Who may write what; every other job reads.
WRITES = {
    "publish.release": {"packages", "id-token", "attestations"},
    "data.comment": {"pull-requests"},
}


def tracked(*patterns: str) -> list[str]:
    """Files that are, or are about to be, in git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()


def passes(*command: str | Path, stdin: str | None = None) -> None:
    done = subprocess.run(
        [str(BIN / command[0]), *map(str, command[1:])],
        cwd=ROOT, check=False, capture_output=True, text=True, input=stdin,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_fits_githubs_schema(name: str) -> None:
    passes("check-jsonschema", "--builtin-schema", "vendor.github-workflows", GITHUB / f"workflows/{name}.yml")


def test_dependabots_file_fits_its_schema() -> None:
    passes("check-jsonschema", "--builtin-schema", "vendor.dependabot", GITHUB / "dependabot.yml")


def test_compose_s_file_is_in_its_form_and_every_image_has_a_version_and_a_digest() -> None:
    passes("check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "compose.yaml")
    images = re.findall(r"^    image: (\S+)$", (ROOT / "compose.yaml").read_text(), re.MULTILINE)
    theirs = [image for image in images if not image.startswith("${CATSDOGS")]
    assert len(theirs) == 4
    assert all(re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(-alpine)?@sha256:[0-9a-f]{64}", image) for image in theirs)


def test_zizmor_finds_nothing_even_when_pedantic() -> None:
    passes("zizmor", "--offline", "--persona", "pedantic", "--strict-collection", GITHUB)


def test_the_yaml_is_tidy() -> None:
    passes("yamllint", "--strict", ".yamllint", *tracked("*.yml", "*.yaml"))


def test_hadolint_passes_every_dockerfile() -> None:
    dockerfiles = [name for name in tracked("docker/*Dockerfile*") if not name.endswith(".dockerignore")]
    assert "docker/Dockerfile" in dockerfiles
    passes("hadolint", *dockerfiles)


def test_shellcheck_passes_every_script() -> None:
    scripts = tracked("*.sh")
    assert ".github/photographs.sh" in scripts
    passes("shellcheck", ".ci/run", *scripts)


@pytest.mark.parametrize("run", [run for _, run in RUNS], ids=[name for name, _ in RUNS])
def test_shellcheck_passes_every_step(run: str) -> None:
    passes("shellcheck", "--shell", "bash", "-", stdin=run)


@pytest.mark.parametrize("run", [run for _, run in RUNS], ids=[name for name, _ in RUNS])
def test_nothing_is_pasted_into_a_steps_shell(run: str) -> None:
    assert "${{" not in run


def test_every_action_is_pinned_to_one_commit_with_its_version_beside_it() -> None:
    commits: dict[str, set[str]] = {}
    for line in TEXT.splitlines():
        if not (match := re.match(r"\s*(?:- )?uses: (.*)", line)) or match[1].startswith("./"):
            continue
        pinned = re.fullmatch(r"([\w.-]+(?:/[\w.-]+)+)@([0-9a-f]{40}) # v\d+(\.\d+)*", match[1])
        assert pinned, line
        commits.setdefault(pinned[1], set()).add(pinned[2])
    assert len(commits) >= 10
    assert all(len(found) == 1 for found in commits.values()), commits


def test_what_deploys_is_handed_the_key_that_it_asks_for() -> None:
    wanted = WORKFLOWS["cd"]["on"]["workflow_call"]["secrets"]
    calls = [job for job in WORKFLOWS["publish"]["jobs"].values() if job.get("uses") == "./.github/workflows/cd.yml"]
    assert [set(job["secrets"]) for job in calls] == [set(wanted)]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_uses_no_secret_but_those_listed(name: str) -> None:
    text = (GITHUB / f"workflows/{name}.yml").read_text()
    assert set(re.findall(r"secrets[.\[]['\"]?(\w+)", text)) - {"GITHUB_TOKEN"} == SECRETS[name]
    assert "inherit" not in text


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_has_no_rights_but_what_each_job_asks_for(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {}
    for key, job in WORKFLOWS[name]["jobs"].items():
        writes = {scope for scope, right in job["permissions"].items() if right == "write"}
        assert writes == WRITES.get(f"{name}.{key}", set()), key


def installs_or_tests(steps: list[dict[str, Any]]) -> bool:
    """Whether steps run the repository's tests or packages that others made."""
    return any(re.search(r"pytest|\bpip\b|make (test|install)|npm |apt-get", step.get("run", "")) for step in steps)


@pytest.mark.parametrize(("name", "job"), [(f"{name}.{key}", job) for name, key, job in JOBS if "steps" in job])
def test_a_job_that_may_write_runs_no_test_and_installs_nothing(name: str, job: dict[str, Any]) -> None:
    writes = "write" in job["permissions"].values()
    assert not (writes and installs_or_tests(job["steps"])), name
    assert not (writes and any("checkout" in step.get("uses", "") for step in job["steps"])), name


def test_what_the_machine_that_serves_installs_is_pinned_by_hash() -> None:
    runs = "\n".join(step.get("run", "") for step in WORKFLOWS["cd"]["jobs"]["deploy"]["steps"])
    runs += (ROOT / "ops/deploy.sh").read_text()
    installs = re.findall(r"^.*\b(?:install|download)\b.*$", runs.replace("\\\n", ""), re.MULTILINE)
    wanted = "install --quiet --require-hashes --no-deps --only-binary :all: --requirement docker/deploy.lock"
    assert [" ".join(line.split()[1:]) for line in installs] == [wanted]
    lock = (ROOT / "docker/deploy.lock").read_text()
    pinned = re.findall(r"^([\w-]+)==\S+ .*\\\n    --hash=sha256:", lock, re.MULTILINE)
    assert {"click", "httpx", "msgspec"} <= set(pinned)
    assert not re.search(r"\| *(sudo )?(ba)?sh\b", runs), "nothing from the network goes straight to a shell"


def test_code_of_a_pull_request_never_runs_with_rights_to_write() -> None:
    assert "pull_request_target" not in TEXT
    assert "workflow_run" not in TEXT
    comment = WORKFLOWS["data"]["jobs"]["comment"]
    assert not any("checkout" in step.get("uses", "") for step in comment["steps"])


def test_no_checkout_leaves_the_token_behind() -> None:
    checkouts = [step for _, _, step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize(("name", "job"), [(f"{name}.{key}", job) for name, key, job in JOBS if "uses" not in job])
def test_a_job_ends(name: str, job: dict[str, Any]) -> None:
    assert 5 <= job["timeout-minutes"] <= 90, name


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_failure_within_a_pipe_is_a_failure(name: str) -> None:
    assert WORKFLOWS[name]["defaults"]["run"]["shell"] == "bash"


def test_only_a_pull_requests_run_is_ever_cancelled() -> None:
    assert WORKFLOWS["ci"]["concurrency"]["group"].endswith(
        "${{ github.event_name == 'pull_request' && github.ref || github.run_id }}"
    )
    assert list(WORKFLOWS["data"]["on"]) == ["pull_request"]
    for name in ("publish", "cd"):
        assert WORKFLOWS[name]["concurrency"]["cancel-in-progress"] is False


def test_what_the_workflows_name_is_there() -> None:
    runs = "\n".join(run for _, run in RUNS)
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", runs):
        assert re.search(f"^{target}:", makefile, re.MULTILINE), target
    paths = re.findall(r"(?<![\w/.-])((?:\.github|docker|ops|serving|tests)/[\w./-]+)(?![\w@-])", TEXT)
    assert {"ops/deploy.sh", "docker/Dockerfile", ".github/photographs.sh"} <= set(paths)
    for path in paths:
        assert (ROOT / path.rstrip(".")).exists(), path
    for script in re.findall(r"^\s*((?:ops|\.github)/[\w-]+\.sh)", runs, re.MULTILINE):
        assert os.access(ROOT / script, os.X_OK), script
    for module in re.findall(r"-m (ops\.\w+)", runs):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"'\.\[([\w-]+)\]'", runs)) <= set(extras)
    for path, test in re.findall(r"([\w/]+\.py)::(\w+)", runs):
        assert f"def {test}(" in (ROOT / path).read_text()


def test_the_image_test_takes_the_image_that_was_built() -> None:
    assert named_environment("publish", "Does it do what it should?") == {"CATSDOGS_IMAGE": "${{ env.IMAGE }}"}
    tests = [path.read_text() for path in (ROOT / "tests/containers").glob("*.py")]
    assert any("CATSDOGS_IMAGE" in text for text in tests)


def named_environment(workflow: str, name: str) -> dict[str, str]:
    (step,) = [step for file, _, step in STEPS if file == workflow and step.get("name") == name]
    return dict(step["env"])


def test_an_image_is_made_from_a_green_commit_and_named_after_it_was_scanned() -> None:
    jobs = WORKFLOWS["publish"]["jobs"]
    assert jobs["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert "ci" in jobs["build"]["needs"]
    assert "build" in jobs["release"]["needs"]
    build = [step.get("uses", "").split("@")[0] or step["name"] for step in jobs["build"]["steps"]]
    scanned = build.index("aquasecurity/trivy-action")
    assert build.index("Is it small?") < scanned < build.index("Does it do what it should?")
    release = [step.get("name") for step in jobs["release"]["steps"]]
    assert release.index("Push both halves, and put them under it") < release.index("Attest what is in it")
    assert release.index("Attest what is in it") < release.index("Move the names that move")


def test_what_is_pushed_is_the_archive_that_was_tested_kept_before_a_test_could_change_it() -> None:
    jobs = WORKFLOWS["publish"]["jobs"]
    steps = jobs["build"]["steps"]
    (made,) = [number for number, step in enumerate(steps) if "build-push" in step.get("uses", "")]
    build, kept = steps[made]["with"], steps[made + 1]
    assert build["outputs"] == "type=oci,dest=${{ env.ARCHIVE }}"
    assert (build["provenance"], build["sbom"]) == ("mode=max", True)
    assert not {"push", "tags"} & set(build)
    assert kept["uses"].startswith("actions/upload-artifact@")
    assert kept["with"]["path"] == "${{ env.ARCHIVE }}"
    (given,) = [step["run"] for step in steps if step.get("name") == "Give it to the engine"]
    assert '"oci-archive:$ARCHIVE" "docker-daemon:$IMAGE"' in given
    (scan,) = [step for _, _, step in STEPS if "trivy" in step.get("uses", "")]
    assert scan["with"]["image-ref"] == "${{ env.IMAGE }}"
    (brought,) = [step for step in jobs["release"]["steps"] if "download-artifact" in step.get("uses", "")]
    assert brought["with"]["pattern"] == "image-*"


def test_what_is_deployed_is_named_by_its_digest() -> None:
    assert WORKFLOWS["publish"]["jobs"]["deploy"]["with"] == {"digest": "${{ needs.release.outputs.digest }}"}
    assert not re.search(r"inference:\w", TEXT)


def test_an_excuse_for_a_hole_has_a_reason_and_has_not_run_out() -> None:
    excuses = YAML(typ="safe").load(GITHUB / "trivyignore.yaml")["vulnerabilities"]
    for excuse in excuses:
        assert excuse["statement"]
        assert excuse["expired_at"] >= datetime.datetime.now(tz=datetime.UTC).date(), excuse["id"]


def test_contributing_names_commands_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    commands = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert commands
    for command in commands:
        first = command.split("#")[0].split()
        if first[0] == "make":
            assert re.search(f"^{first[1]}:", makefile, re.MULTILINE), command
        else:
            assert first[0].startswith(".venv-dev/bin/"), command
            assert (BIN / Path(first[0]).name).exists(), command
            for path in re.findall(r"tests/[\w/.]+", command):
                assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\(([^)#]+)\)", text + (ROOT / "SECURITY.md").read_text()):
        assert target.startswith(("https://", "../../")) or (ROOT / target).exists(), target
