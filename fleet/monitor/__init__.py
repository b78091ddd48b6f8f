"""What devices report: parsed (``reports``), taken in (``ingest``), stored (``record``), shown
(``history``)."""
