"""The sentences about a cell before it runs: its targets, its missing walls, its oddities.

They are for a person, and quote strangers: the code that shows them must clean them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wgcell.api import Plan
from wgcell.cell import emulation, endpoint
from wgcell.cell.job import Job
from wgcell.cell.remark import Remark
from wgcell.cell.renewal import MOST_ASKED
from wgcell.cell.survey import Survey
from wgcell.cell.wgquick import VpnConfig
from wgcell.gateway.model import remarks
from wgcell.gateway.model.rules import parse_rule
from wgcell.net.addresses import Address
from wgcell.net.routes import has_route
from wgcell.vm.spec import Accelerator

__all__ = ["about_cell", "about_machine", "opens"]


def about_machine(plan: Plan) -> Iterator[Remark]:
    """The sentences before the cell has a folder."""
    if plan.platform.accelerator is Accelerator.TCG:
        yield Remark("normal", True, emulation.explanation(plan.platform.reason))


def about_cell(plan: Plan, cell: str) -> Iterator[Remark]:
    """The sentences about ``cell``: its command, its targets, and its oddities."""
    job = plan.job
    yield Remark("normal", False, f"cell {cell}; {opens(job, plan.tunnel, plan.addresses)}")
    rules = tuple(map(parse_rule, job.gateway.allow if job.gateway else ()))
    tunnel = plan.tunnel.remarks if plan.tunnel else ()
    for text in (*remarks.of_rules(rules), *remarks.without_way(rules, has_route), *tunnel):
        yield Remark("quiet", True, text)
    if plan.survey is not None:
        yield from _about_inputs(job, plan.survey)


def _about_inputs(job: Job, survey: Survey) -> Iterator[Remark]:
    if job.inputs:
        excluded = f", {survey.excluded} excluded" if survey.excluded else ""
        yield Remark("verbose", False, f"inputs: {survey.files} files{excluded}")
    for counted in survey.left_out:
        yield Remark("normal", True, f"input left out: {counted}")
    for counted in survey.links_out:
        yield Remark("normal", False, f"input {counted}")


def opens(job: Job, vpn: VpnConfig | None, addresses: Sequence[Address]) -> str:
    """The cell's targets, in a sentence."""
    if vpn is not None:
        first = addresses[:MOST_ASKED]
        where = " or ".join(f"{endpoint.shown(one, vpn.endpoint_port)}" for one in first)
        return f"its only way out is the tunnel to {where}"
    asked = job.gateway
    rules = [f"allow {rule}" for rule in asked.allow] if asked else []
    rules += [f"{inside} is {outside}" for inside, outside in asked.services] if asked else []
    rules += [f"publish {one}" for one in asked.publish] if asked else []
    if asked and asked.learn:
        rules.append("everything public, to learn")
    return f"it may reach: {', '.join(rules) or 'nothing (no --allow, no --service)'}"
