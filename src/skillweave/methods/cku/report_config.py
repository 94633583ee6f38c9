from skillweave.methods.cku.report.config import ReportConfig, RelearnSettings  # noqa
