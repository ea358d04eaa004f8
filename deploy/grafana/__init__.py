"""The Grafana dashboard, made by code: a module a row; `make dashboards` writes `dashboards/`."""
