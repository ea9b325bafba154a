"""Space and time: problems, bounds, named schedules and the certified solver. Only a search loads ortools."""

from superscaler.scheduler import published
from superscaler.scheduler.constructive import Shape, lane_order, named, orders, schedules
from superscaler.scheduler.listing import list_schedule
from superscaler.scheduler.problem import Certificate, Job, Problem, Timetable, makespan, verify
from superscaler.scheduler.solve import solve

# Importing `published` registers its schedules.
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
    "schedules",
    "solve",
    "verify",
]
