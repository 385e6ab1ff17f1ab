"""A real Prometheus that scrapes the replicas and has the shipped rules, faster; and the shipped dashboard's
queries, as Grafana would send them."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request

import yaml

from world import ROOT, Process, free_ports, wait_for

RULES = ROOT / "helm/chatbot/files/rules.yaml"
DASHBOARD = ROOT / "helm/chatbot/files/dashboard.json"
#: A minute of the rules is two seconds here, and no range or wait is longer than half a minute: what is proved
#: is that the expressions see their fault and its end. The shipped durations are proved by promtool.
FASTER, LONGEST = 30, 30


def shortened(text):
    """The rules with shorter ranges and waits, and every other letter as it is shipped."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}

    def shorter(match):
        before, number, unit, after = match.groups()
        seconds = int(number) * units[unit] / FASTER
        return f"{before}{min(LONGEST, max(2, round(seconds)))}s{after}"

    text = re.sub(r"(\[)(\d+)([smhd])(\])", shorter, text)
    return re.sub(r"(?m)^( +for: )(\d+)([smhd])()$", shorter, text)


def severity_of_rules():
    """Every alert of the rules as (name, severity)."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    return {(rule["alert"], rule["labels"]["severity"]) for rule in rules if "alert" in rule}


class Prometheus(Process):
    def __init__(self, folder, replicas):
        (self.port,) = free_ports(1)
        (folder / "rules.yaml").write_text(shortened(RULES.read_text()))
        jobs = {}
        for one in replicas:
            target = {
                "targets": [f"127.0.0.1:{one.ops}"],
                "labels": {"namespace": "test", "pod": one.name},
            }
            jobs.setdefault(one.job, []).append(target)
        config = {
            "global": {
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "evaluation_interval": "1s",
            },
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": targets} for job, targets in jobs.items()
            ],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        super().__init__(
            "prometheus",
            "--config.file=prometheus.yaml",
            "--storage.tsdb.path=data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            folder=folder,
        )

    def start(self):
        super().start()
        wait_for("Prometheus", self._serves)

    def _serves(self):
        self.must_live()
        try:
            return self.ask("query", query="1")
        except OSError:
            return False

    def ask(self, path, **parameters):
        """The data of an answer of its API."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def alerts(self, *states):
        """The alerts that are so, as their labels and annotations together."""
        found = self.ask("alerts")["alerts"]
        return [
            {**alert["annotations"], **alert["labels"]} for alert in found if alert["state"] in states
        ]

    def firing(self):
        return self.alerts("firing")


class Dashboard:
    """The shipped dashboard. Its variables stand for everything, as when it is opened."""

    def __init__(self):
        self.board = json.loads(DASHBOARD.read_text())

    @staticmethod
    def _filled(text):
        for variable, value in {
            "$__rate_interval": "10s",
            "$__interval": "5s",
            "$namespace": ".*",
            "$job": ".*",
            "$pod": ".*",
        }.items():
            text = text.replace(variable, value)
        if "$" in text:
            raise AssertionError(f"an unknown variable: {text}")
        return text

    def queries(self):
        """Panel and query, of every target of every panel."""
        for panel in self.board["panels"]:
            for target in panel.get("targets", []):
                yield f"{panel['title']} ({target['refId']})", self._filled(target["expr"])

    def without_data(self, prometheus, now):
        """The queries that show nothing of the last half minute."""
        empty = []
        for name, query in self.queries():
            found = prometheus.ask("query_range", query=query, start=now - 30, end=now, step=2)["result"]
            values = [value for series in found for _, value in series["values"]]
            if not any(value not in ("NaN", "+Inf", "-Inf") for value in values):
                empty.append(f"{name}: {query}")
        return empty

    def check_variables(self, prometheus):
        """Every variable offers something, and its name is one that queries use."""
        for variable in self.board["templating"]["list"]:
            if variable["type"] == "datasource":
                continue
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            metric, label = asked.groups()
            offered = prometheus.ask(f"label/{label}/values", **{"match[]": self._filled(metric)})
            if not offered:
                raise AssertionError(f"the variable {variable['name']} offers nothing")
        for annotation in self.board["annotations"]["list"]:
            if "expr" in annotation:
                prometheus.ask("query", query=self._filled(annotation["expr"]))
