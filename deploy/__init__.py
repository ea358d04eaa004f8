"""What an operator needs around the server: dashboards, rules, containers, Kubernetes."""
