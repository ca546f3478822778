"""The counters: what Prometheus' own parser reads in them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from gpt2kit.serve.metrics import Metrics


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_reads_every_kind() -> None:
    metrics = Metrics()
    metrics.requests.add(route="/v1/completions", code="200")
    metrics.requests.add(route="/v1/completions", code="200")
    metrics.generated.add(7)
    for seconds in (0.0005, 0.3, 500):
        metrics.queue.observe(seconds)
    metrics.step_rows.observe(8, times=2)
    metrics.gauge("gpt2kit_slots", "Slots.", lambda: {(("model", 'a"b\\c\nd'),): 8})
    found = samples(metrics.text())
    labels = (("code", "200"), ("route", "/v1/completions"))
    assert found["gpt2kit_requests_total", labels] == 2
    assert found["gpt2kit_generated_tokens_total", ()] == 7
    assert found["gpt2kit_slots", (("model", 'a"b\\c\nd'),)] == 8
    assert found["gpt2kit_queue_seconds_bucket", (("le", "0.001"),)] == 1
    assert found["gpt2kit_queue_seconds_bucket", (("le", "0.5"),)] == 2
    assert found["gpt2kit_queue_seconds_bucket", (("le", "+Inf"),)] == 3
    assert found["gpt2kit_queue_seconds_sum", ()] == 500.3005
    assert found["gpt2kit_step_rows_count", ()] == 2
    assert found["process_resident_memory_bytes", ()] > 2**20
    assert metrics.queue.mean == 500.3005 / 3


def test_families_have_the_types_that_their_names_promise() -> None:
    families = {
        family.name: family.type for family in text_string_to_metric_families(Metrics().text())
    }
    assert families["gpt2kit_generated_tokens"] == "counter"
    assert families["process_cpu_seconds"] == "counter"
    assert families["gpt2kit_step_seconds"] == "histogram"
    assert families["process_resident_memory_bytes"] == "gauge"
