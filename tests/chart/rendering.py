"""Renders and lints the chart, for the chart's checks and for k8s/render.

By the real `helm` where there is one ($HELM, or in PATH), since that is what users run; else by
Helm's engine as a Python package, which needs neither Go nor a download of a program.
"""

import os
import shutil
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "chatbot"
# A helm that was built without release flags takes itself for a client of a Kubernetes long gone.
KUBE_VERSION = "1.34.0"
HELM = os.environ.get("HELM") or shutil.which("helm")


class ChartError(Exception):
    """Helm refused the chart or the values; the text is Helm's own."""


class ToolMissing(Exception):
    """Something is not installed; the text says what to install."""


def engine():
    """Which Helm renders here, for the report."""
    if HELM:
        return "helm " + _helm("version", "--template", "{{.Version}}")
    return f"helm {_sdk().helm_sdk_version()} (helm-python-sdk)"


def render(values=None, name="chatbot", namespace="demo"):
    """The objects of a release, test hooks included."""
    if HELM:
        args = ("--namespace", namespace, "--kube-version", KUBE_VERSION, "--values", "-")
        text = _helm("template", name, CHART, *args, values=values)
        texts = [text]
    else:
        sdk = _sdk()
        try:
            with sdk.Chart.load(CHART) as chart:
                chart.validate_schema(values or {})
                rendered = chart.render(values or {}, name=name, namespace=namespace)
        except sdk.HelmError as error:
            raise ChartError(str(error)) from error
        texts = [text for path, text in sorted(rendered.items()) if path.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def lint(values=None):
    """What `helm lint --strict` finds, information aside."""
    if HELM:
        try:
            _helm("lint", CHART, "--strict", "--quiet", "--kube-version", KUBE_VERSION, "--values", "-", values=values)
        except ChartError as error:
            return [str(error)]
        return []
    report = _sdk().lint(CHART, values or {}, strict=True)
    found = [message["error"] for message in report["messages"] if message["severity"] > 1]
    return found + report["errors"]


def _helm(*args, values=None):
    done = subprocess.run(
        [HELM, *map(str, args)],
        input=yaml.safe_dump(values or {}, allow_unicode=True),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ChartError((done.stderr + done.stdout).strip())
    return done.stdout


def _sdk():
    try:
        import helm_python
    except ImportError as error:
        raise ToolMissing("helm, or: pip install -r tests/chart/requirements.txt") from error
    return helm_python
