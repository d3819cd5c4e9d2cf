// Command sbom writes a bill of materials of Go programs in CycloneDX's JSON, on standard output: each program with the
// digest of its file, and the modules that the Go linker has noted in it. Nothing is looked up anywhere, and the same
// programs give the same bytes.
//
//	usage: sbom [-version V] [-name N] FILE|DIR…     V is that of programs whose module has none, because it is built from its sources
package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

func main() {
	version := flag.String("version", "", "version of programs that are built from their sources")
	name := flag.String("name", "etcd-migrate image", "what the bill is of")
	flag.Parse()
	b := bill{version: *version, libraries: map[string]cdx.Component{}}
	for _, path := range flag.Args() {
		if err := b.addAll(path); err != nil {
			fmt.Fprintln(os.Stderr, "sbom:", err)
			os.Exit(1)
		}
	}
	if len(b.programs) == 0 {
		fmt.Fprintln(os.Stderr, "sbom: no Go program found")
		os.Exit(1)
	}
	if err := cdx.NewBOMEncoder(os.Stdout, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(b.bom(*name), cdx.SpecVersion1_6); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

type bill struct {
	version      string
	programs     []cdx.Component
	libraries    map[string]cdx.Component // by package URL
	dependencies []cdx.Dependency
}

// addAll adds a program, or all in a directory and below it. What is no program is passed over; links are, too.
func (b *bill) addAll(path string) error {
	return filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(content, []byte("\x7fELF")) {
			return nil
		}
		info, err := buildinfo.Read(bytes.NewReader(content))
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		b.add(filepath.Base(file), content, info)
		return nil
	})
}

func (b *bill) add(name string, content []byte, info *buildinfo.BuildInfo) {
	digest := sha256.Sum256(content)
	version := info.Main.Version
	if version == "(devel)" || version == "" {
		version = b.version
	}
	ref := "file:" + name
	b.programs = append(b.programs, cdx.Component{
		BOMRef: ref, Type: cdx.ComponentTypeApplication, Name: name, Version: version,
		PackageURL: packageURL(info.Main.Path, version),
		Hashes:     &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(digest[:])}},
		Properties: &[]cdx.Property{{Name: "go:package", Value: info.Path}, {Name: "go:version", Value: info.GoVersion}},
	})
	needs := []string{b.library("std", strings.TrimPrefix(info.GoVersion, "go"))}
	for _, m := range info.Deps {
		needs = append(needs, b.module(m))
	}
	slices.Sort(needs)
	b.dependencies = append(b.dependencies, cdx.Dependency{Ref: ref, Dependencies: &needs})
}

func (b *bill) module(m *debug.Module) string {
	if m.Replace != nil {
		m = m.Replace
	}
	return b.library(m.Path, m.Version)
}

func (b *bill) library(path, version string) string {
	ref := packageURL(path, version)
	b.libraries[ref] = cdx.Component{BOMRef: ref, Type: cdx.ComponentTypeLibrary, Name: path, Version: version, PackageURL: ref}
	return ref
}

func packageURL(path, version string) string {
	if version != "" {
		version = "@" + strings.ReplaceAll(version, "+", "%2B")
	}
	return "pkg:golang/" + path + version
}

func (b *bill) bom(name string) *cdx.BOM {
	slices.SortFunc(b.programs, func(x, y cdx.Component) int { return cmp.Compare(x.Name, y.Name) })
	slices.SortFunc(b.dependencies, func(x, y cdx.Dependency) int { return cmp.Compare(x.Ref, y.Ref) })
	components := b.programs
	for _, ref := range slices.Sorted(maps.Keys(b.libraries)) {
		components = append(components, b.libraries[ref])
	}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Component: &cdx.Component{Type: cdx.ComponentTypeContainer, Name: name, Version: b.version}}
	bom.Components, bom.Dependencies = &components, &b.dependencies
	return bom
}
