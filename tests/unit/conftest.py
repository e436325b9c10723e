"""Examples that hypothesis draws may take their time: a busy machine stands still for seconds."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Above what a CI has (it draws the same examples each time), or a developer.
settings.register_profile(
    "patient", settings.get_profile(settings.get_current_profile_name()), deadline=None,
    suppress_health_check=[*settings.default.suppress_health_check, HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("patient")
