"""One self-contained page of runs: what was selected, what it cost, and what was found."""

from crest.page.facts import run_facts as run_facts
from crest.page.write import PAGE_NAME as PAGE_NAME
from crest.page.write import RECORD_NAME as RECORD_NAME
from crest.page.write import read_run as read_run
from crest.page.write import write_page as write_page
from crest.page.write import write_record as write_record

__all__ = ["PAGE_NAME", "RECORD_NAME", "read_run", "run_facts", "write_page", "write_record"]
