// The tools that `make lint` and `make vuln` run, pinned apart from the program's own dependencies.
module github.com/etcd-migrate/etcd-migrate/tools

go 1.26.0
