"""From runs to evidence: arms, regimes, evaluation, statistics, figures, pages."""
