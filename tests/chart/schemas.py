"""Strict schemas: those of Kubernetes, by two validators, and those of the custom resources, out of the
definitions that their projects ship. Nothing here goes to the network; what is not installed is missing.
"""

import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from rendering import Loader, ToolMissing

HERE = Path(__file__).resolve().parent
PIP = "pip install -r tests/chart/requirements.txt"
KUBECONFORM = "go install github.com/yannh/kubeconform/cmd/kubeconform@v0.7.0"
BUILT_IN = re.compile(r"(v1|apps/v1|policy/v1|autoscaling/v2|networking\.k8s\.io/v1)")


def is_custom(o):
    return not BUILT_IN.fullmatch(o["apiVersion"])


def _told(o, where, message):
    return f"{o['kind']} {o['metadata']['name']}: {'/'.join(map(str, where))}: {message}"


def kubernetes_problems(objects, version):
    """What the schemas of that Kubernetes refuse, unknown fields included."""
    try:
        import kubernetes_validate
    except ImportError as error:
        raise ToolMissing(PIP) from error
    problems = []
    for o in objects:
        if is_custom(o):
            continue
        try:
            kubernetes_validate.validate(o, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            problems.append(_told(o, error.path, error.message))
    return problems


def kubeconform_problems(objects, version):
    """The same by kubeconform, which reads other things into a schema, such as formats."""
    program = shutil.which("kubeconform")
    if not program:
        raise ToolMissing(f"kubeconform: {KUBECONFORM}")
    location = str(_kubeconform_schemas(version) / "{{.ResourceKind}}{{.KindSuffix}}.json")
    flags = ("-strict", "-kubernetes-version", version + ".0", "-schema-location", location)
    text = yaml.safe_dump_all([o for o in objects if not is_custom(o)], allow_unicode=True)
    done = subprocess.run([program, *flags, "-"], input=text, capture_output=True, text=True, check=False)
    return [done.stdout + done.stderr] if done.returncode else []


@functools.lru_cache(maxsize=None)
def _kubeconform_schemas(version):
    try:
        import kubernetes_validate
    except ImportError as error:
        raise ToolMissing(PIP) from error
    package = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    folder = Path(_scratch().name) / version
    folder.mkdir()
    for path in (package / f"v{version}.0-local-strict").glob("*.json"):
        # The package finds references by a loader of its own. With the ids made comments and the
        # definitions a neighbour, any validator does.
        text = path.read_text().replace('"$id":', '"$comment":').replace('"$ref": "/api/_def', '"$ref": "_def')
        (folder / path.name).write_text(text)
    return folder


@functools.lru_cache(maxsize=None)
def _scratch():
    return tempfile.TemporaryDirectory()


# === custom resources ===


def custom_problems(objects):
    """What the definitions of the custom resources refuse, unknown fields included: a real API server would
    drop those in silence."""
    try:
        import jsonschema
    except ImportError as error:
        raise ToolMissing(PIP) from error
    problems = []
    for o in filter(is_custom, objects):
        validator = jsonschema.Draft4Validator(_definition(o["apiVersion"], o["kind"]))
        problems += [_told(o, error.path, error.message) for error in validator.iter_errors(o)]
    return problems


@functools.lru_cache(maxsize=None)
def _definition(api_version, kind):
    group, version = api_version.split("/")
    for folder in _folders():
        path = folder / f"{group}_{kind.lower()}s.yaml"
        if path.exists():
            for document in yaml.load_all(path.read_text(), Loader):
                for each in document["spec"]["versions"]:
                    if each["name"] == version and each["served"]:
                        return _strict(each["schema"]["openAPIV3Schema"])
    raise AssertionError(f"no definition of {api_version} {kind} in what crds.txt names")


def _strict(schema):
    """A schema that refuses what it does not name, unless it says that it keeps that."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: value if key == "default" else _strict(value) for key, value in schema.items()}
    kept = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if isinstance(schema.get("properties"), dict) and "type" in schema and not kept:
        made.setdefault("additionalProperties", False)
    return made


@functools.lru_cache(maxsize=None)
def _folders():
    go = shutil.which("go")
    if not go:
        raise ToolMissing("go, and the modules of tests/chart/crds.txt")
    folders = []
    for line in (HERE / "crds.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        module, folder = line.split()
        # From the cache: GOPROXY=off keeps a check from downloading.
        environment = {**os.environ, "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"}
        command = [go, "mod", "download", "-json", module]
        done = subprocess.run(
            command, cwd=_scratch().name, env=environment, capture_output=True, text=True, check=False
        )
        found = re.search(r'"Dir": "(.*)"', done.stdout)
        if done.returncode or not found:
            raise ToolMissing(f"go mod download {module} (tests/chart/crds.txt has all of them)")
        folders.append(Path(found[1]) / folder)
    return folders
