"""Write the rules of this folder as the Prometheus operator wants them: `rule_resource.py > …/prometheus-rule.yaml`."""

from pathlib import Path

HEAD = """\
# Written by `make k8s-rules` from deploy/prometheus: change them there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: viq
  namespace: viq
spec:
  groups:
"""


def resource(*files: Path) -> str:
    """The rules of all `files` as one PrometheusRule."""
    groups: list[str] = []
    for file in files:
        _, _, body = file.read_text(encoding="utf-8").partition("\ngroups:\n")
        groups += [f"  {line}".rstrip() for line in body.splitlines()]
    return HEAD + "\n".join(groups) + "\n"


if __name__ == "__main__":
    here = Path(__file__).parent
    print(resource(here / "recording.yml", here / "alerts.yml"), end="")
