from __future__ import annotations

from devices.board.serving.metrics import Metrics


def test_the_page() -> None:
    counted = Metrics()
    for seconds in (0.0004, 0.001, 0.02, 70.0):
        counted.request("infer", 200, seconds)
    counted.request("other", 404, 0.001)
    counted.confidence('a "model"\\', 0.95)
    page = counted.page({("edgeship_connections", "gauge", "Open connections."): lambda: [((), 3.0)]}).decode()
    lines = page.splitlines()
    assert 'edgeship_requests_total{endpoint="infer",code="200"} 4' in lines
    assert 'edgeship_requests_total{endpoint="other",code="404"} 1' in lines
    assert 'edgeship_request_seconds_bucket{endpoint="infer",le="0.0005"} 1' in lines
    assert 'edgeship_request_seconds_bucket{endpoint="infer",le="0.001"} 2' in lines
    assert 'edgeship_request_seconds_bucket{endpoint="infer",le="10.0"} 3' in lines
    assert 'edgeship_request_seconds_bucket{endpoint="infer",le="+Inf"} 4' in lines
    assert 'edgeship_request_seconds_count{endpoint="infer"} 4' in lines
    assert r'edgeship_confidence_bucket{model="a \"model\"\\",le="0.95"} 1' in lines
    assert r'edgeship_confidence_bucket{model="a \"model\"\\",le="0.9"} 0' in lines
    assert "edgeship_connections 3.0" in lines
    assert lines.count("# TYPE edgeship_request_seconds histogram") == 1
    assert page.endswith("\n")
