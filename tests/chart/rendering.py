"""Renders and lints the chart, for the chart's checks and for k8s/render.

By the real `helm` where there is one ($HELM, or in PATH), since that is what users run; else by
Helm's engine as a Python package, which needs neither Go nor a download of a program. A second `helm`
of the other major version ($HELM3, or `helm3` in PATH) is only compared with.
"""

import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "chatbot"
# A helm that was built without release flags takes itself for a client of a Kubernetes long gone.
KUBE_VERSION = "1.37.0"
HELM = os.environ.get("HELM") or shutil.which("helm")
HELM3 = os.environ.get("HELM3") or shutil.which("helm3")


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """By libyaml where it is there, which is several times faster. A key that is there twice is an error, as
    it is for an API server."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{sorted(twice)} twice in a map", node.start_mark)
        return super().construct_mapping(node, deep)


class ChartError(Exception):
    """Helm refused the chart or the values; the text is Helm's own."""


class ToolMissing(Exception):
    """Something is not installed; the text says what to install."""


def engine(helm=HELM):
    """Which Helm renders here, for the report."""
    if helm:
        return "helm " + _helm(helm, "version", "--template", "{{.Version}}")
    return f"helm {_sdk().helm_sdk_version()} (helm-python-sdk)"


def render(values=None, name="chatbot", namespace="demo", kube=KUBE_VERSION, apis=(), helm=HELM, chart=CHART):
    """The objects of a release, test hooks included. `apis` are what a cluster would say that it knows."""
    # As text, so that everybody gets objects of their own.
    text = _rendered(json.dumps(values or {}, sort_keys=True), name, namespace, kube, tuple(apis), helm, chart)
    return [document for document in yaml.load_all(text, Loader) if document]


@functools.lru_cache(maxsize=None)
def _rendered(values, name, namespace, kube, apis, helm, chart):
    if helm:
        args = ["--namespace", namespace, "--kube-version", kube, "--values", "-"]
        for api in apis:
            args += ["--api-versions", api]
        return _helm(helm, "template", name, chart, *args, values=values)
    sdk = _sdk()
    if kube != KUBE_VERSION or apis:
        raise ToolMissing("the helm program, to pretend to be another cluster")
    try:
        with sdk.Chart.load(chart) as loaded:
            loaded.validate_schema(json.loads(values))
            rendered = loaded.render(json.loads(values), name=name, namespace=namespace)
    except sdk.HelmError as error:
        raise ChartError(str(error)) from error
    return "\n---\n".join(text for path, text in sorted(rendered.items()) if path.endswith(".yaml"))


def render_again(values, name="chatbot", namespace="demo"):
    """What `render` gives, but rendered now and not remembered."""
    text = _rendered.__wrapped__(json.dumps(values, sort_keys=True), name, namespace, KUBE_VERSION, (), HELM, CHART)
    return [document for document in yaml.load_all(text, Loader) if document]


def notes(values=None, name="chatbot"):
    """What an operator reads after an install. `helm template` leaves it out, so a copy of the chart has it as
    an object."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "chatbot"
        shutil.copytree(CHART, copy)
        templates = copy / "templates"
        (templates / "NOTES.txt").rename(copy / "NOTES.txt")
        (templates / "notes.yaml").write_text('kind: Notes\ntext: {{ tpl (.Files.Get "NOTES.txt") . | toJson }}\n')
        (found,) = [o["text"] for o in render(values, name=name, chart=copy) if o["kind"] == "Notes"]
    return found


def lint(values=None, helm=HELM):
    """What `helm lint --strict` finds, information aside."""
    if helm:
        args = ("--strict", "--quiet", "--kube-version", KUBE_VERSION, "--values", "-")
        try:
            _helm(helm, "lint", CHART, *args, values=json.dumps(values or {}))
        except ChartError as error:
            return [str(error)]
        return []
    report = _sdk().lint(CHART, values or {}, strict=True)
    found = [message["error"] for message in report["messages"] if message["severity"] > 1]
    return found + report["errors"]


def _helm(helm, *args, values=None):
    command = [helm, *map(str, args)]
    done = subprocess.run(command, input=values or "{}", capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChartError((done.stderr + done.stdout).strip())
    return done.stdout


def _sdk():
    try:
        import helm_python
    except ImportError as error:
        raise ToolMissing("helm, or: pip install -r tests/chart/requirements.txt") from error
    return helm_python
