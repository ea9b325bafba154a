"""Space and time: problems, bounds, named schedules and the certified solver. Only a search loads ortools."""

from superscaler.scheduler import published, recycling
from superscaler.scheduler.constructive import Shape, lane_order, named, orders, schedules
from superscaler.scheduler.listing import list_schedule
from superscaler.scheduler.problem import Certificate, Job, Problem, Timetable, makespan, verify
from superscaler.scheduler.solve import solve

# Importing `published` and `recycling` registers their schedules.
__all__ = [
    "Certificate",
    "Job",
    "Problem",
    "Shape",
    "Timetable",
    "lane_order",
    "list_schedule",
    "makespan",
    "named",
    "orders",
    "published",
    "recycling",
    "schedules",
    "solve",
    "verify",
]
