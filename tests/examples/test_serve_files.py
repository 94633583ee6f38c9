"""The files around the server: the dashboard names series that exist, the unit and the deployment are well-formed."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from helpers.small_server import small_service
from skillweave.config import read_config
from skillweave.serve.engine_service import EngineService
from skillweave.serve.service import AnswerFigures, Resolved
from skillweave.serve.settings import ServeConfig

FOLDER = Path(__file__).parents[2] / "examples" / "serve"


async def _load(service: EngineService) -> None:
    async with service.use("sort"):
        pass


def _series() -> set[str]:
    """The names of all series of a server that has answered something."""
    service = small_service()
    asyncio.run(_load(service))
    routed = Resolved("sort", "sort", "router", 0.9)
    service.observer.started("auto", routed)
    service.observer.started("auto", Resolved("base", None, "router", 0.5))
    service.observer.first_token(routed, 0.1)
    service.observer.token(routed, 2, 0.1)
    service.observer.finished(AnswerFigures("auto", routed, 3, 3, 0.2, 0.1), "stop")
    service.metrics.responded(200)
    families = text_string_to_metric_families(service.metrics.text().decode())
    return {sample.name for family in families for sample in family.samples}


def test_the_dashboard_shows_every_series_and_no_other() -> None:
    board = json.loads((FOLDER / "grafana.json").read_text())
    texts = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    texts += [one["query"] for one in board["templating"]["list"]]
    shown = set(re.findall(r"skillweave_\w+", " ".join(texts)))
    there = _series()
    assert shown <= there
    parts = re.compile(r"_(total|created|sum|count|bucket)$")
    assert {parts.sub("", name) for name in there} - {parts.sub("", name) for name in shown} == {"skillweave_info"}
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in board["panels"]})


# -- systemd -----------------------------------------------------------------------------------------------------------


def _unit() -> dict[str, dict[str, list[str]]]:
    """Section -> key -> its values."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in (FOLDER / "skillweave.service").read_text().splitlines():
        if line.startswith("["):
            section = sections[line.strip("[]")] = {}
        elif line and not line.startswith("#"):
            key, sign, value = line.partition("=")
            assert sign, line
            section.setdefault(key, []).append(value)
    return sections


def _options(words: list[str]) -> dict[str, Any]:
    """The options of a command line as settings."""
    pairs = [word.split("=") if "=" in word else word for word in words]
    flat = [part for pair in pairs for part in ([pair] if isinstance(pair, str) else pair)]
    return {name.removeprefix("--").replace("-", "_"): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def test_the_unit_of_systemd_is_hardened_and_starts_the_server() -> None:
    unit = _unit()
    assert set(unit) == {"Unit", "Service", "Install"}
    service = {key: values[-1] for key, values in unit["Service"].items()}
    for key in ("DynamicUser", "NoNewPrivileges", "PrivateTmp", "ProtectHome", "RestrictNamespaces", "LockPersonality"):
        assert service[key] == "yes"
    assert (service["ProtectSystem"], service["CapabilityBoundingSet"]) == ("strict", "")
    program, command, target, *options = service["ExecStart"].split()
    assert (Path(program).name, command, target) == ("skillweave", "serve", "/srv/skillweave/weave")
    settings = read_config(ServeConfig, _options(options))
    assert settings.api_key_file is not None
    assert settings.grace < float(service["TimeoutStopSec"])


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        return
    text = (FOLDER / "skillweave.service").read_text()
    (tmp_path / "skillweave.service").write_text(text.replace("/opt/skillweave/bin/skillweave", "/bin/true"))
    ran = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "skillweave.service")], capture_output=True, text=True
    )
    assert "skillweave.service" not in ran.stderr + ran.stdout


# -- Kubernetes --------------------------------------------------------------------------------------------------------


def test_the_deployment_has_a_secret_probes_and_no_privileges() -> None:
    deployment, service = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert service["spec"]["ports"][0]["targetPort"] in ports
    for probe, path in (("readinessProbe", "/ready"), ("livenessProbe", "/health"), ("startupProbe", "/health")):
        assert container[probe]["httpGet"]["path"] == path
        assert container[probe]["httpGet"]["port"] in ports
    (key,) = [entry for entry in container["env"] if entry["name"] == "SKILLWEAVE_API_KEY"]
    assert set(key["valueFrom"]["secretKeyRef"]) == {"name", "key"}
    assert container["resources"]["requests"]
    assert container["resources"]["limits"]["memory"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["spec"]["volumes"]
    }
    settings = read_config(ServeConfig, _options(container["args"]))
    assert settings.port == ports["http"]
    assert settings.grace < pod["spec"]["terminationGracePeriodSeconds"]
