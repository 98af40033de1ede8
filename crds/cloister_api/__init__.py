"""The contract between Cloister's parts: the FineTuneJob, the run file, events, reasons and the stored layout."""
