package datadir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// Verify reads the whole backup and reports everything in which it differs from its manifest: missing files, files
// too many, wrong sizes and wrong content. Owners, modes and times are not compared, because a restore takes them
// from the manifest, so that a backup survives being carried around.
func (b Backup) Verify(ctx context.Context, progress Progress) error {
	if b.Err != nil {
		return b.Err
	}
	problems, err := b.compare()
	if err != nil {
		return fmt.Errorf("verify backup %s: %w", b.Path, err)
	}
	var done int64
	count := func(n int64) {
		if done += n; progress != nil {
			progress(done, b.Manifest.Bytes)
		}
	}
	for _, want := range b.Manifest.Files {
		if want.Dir {
			continue
		}
		err := checkFile(ctx, b.file(want.Path), want, count)
		if ctx.Err() != nil {
			return fmt.Errorf("verify backup %s: %w", b.Path, ctx.Err())
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // compare has told of missing ones
			problems = append(problems, err)
		}
	}
	if len(problems) > 0 {
		return fmt.Errorf("backup %s is damaged: %w", b.Path, errors.Join(problems...))
	}
	return nil
}

func (b Backup) file(path string) string { return filepath.Join(b.Path, filepath.FromSlash(path)) }

// compare looks for missing and additional files and for the kinds of all, without reading any.
func (b Backup) compare() (problems []error, err error) {
	there, err := scan(b.Path, "", manifestName)
	if err != nil {
		return nil, err
	}
	found := map[string]entry{}
	for _, e := range there {
		found[e.Path] = e
	}
	for _, want := range b.Manifest.Files {
		got, ok := found[want.Path]
		if !ok {
			problems = append(problems, fmt.Errorf("%s is missing", b.file(want.Path)))
		} else if got.Dir != want.Dir {
			problems = append(problems, fmt.Errorf("%s is a file instead of a directory or the reverse", got.src))
		}
		delete(found, want.Path)
	}
	for _, e := range there {
		if _, extra := found[e.Path]; extra && e.Path != "" {
			problems = append(problems, fmt.Errorf("%s is not in the manifest", e.src))
		}
	}
	return problems, nil
}
