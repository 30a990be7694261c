"""The page of ``catsdogs label``: people say what samples show. No pipeline stage needs it but for its ledger."""
