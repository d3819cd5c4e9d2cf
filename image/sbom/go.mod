// The program that writes the image's bill of materials, pinned apart from the program's own dependencies.
module github.com/etcd-migrate/etcd-migrate/image/sbom

go 1.26.0

require github.com/CycloneDX/cyclonedx-go v0.12.0
