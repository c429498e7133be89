"""Floor 5, the evidence: one file per measured claim, behind `uwm bench NAME`, and the report of the demo."""
