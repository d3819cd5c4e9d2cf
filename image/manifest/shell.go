package manifest

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// isShell reports whether a command is sh -c and a script.
func isShell(command []string) bool {
	return len(command) == 3 && slices.Contains([]string{"sh", "bash", "dash", "ash"}, path.Base(command[0])) &&
		strings.HasPrefix(command[1], "-") && strings.HasSuffix(command[1], "c")
}

// fromShell takes etcd and its arguments from a script as GCE's manifests have it, which only calls the old migrate first:
//
//	if [ -e /usr/local/bin/migrate-if-needed.sh ]; then …; fi; exec /usr/local/bin/etcd --name … 1>>/var/log/etcd.log 2>&1
//
// Any other script is an error, because what it does besides would be lost.
func fromShell(script string) (etcd, notes []string, err error) {
	file, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(strings.NewReader(script), "")
	if err != nil {
		return nil, nil, fmt.Errorf("read the shell script in the command: %w", err)
	}
	stmts := flatten(file.Stmts)
	if len(stmts) == 0 {
		return nil, nil, errors.New("the shell script in the command is empty")
	}
	last := stmts[len(stmts)-1]
	for _, s := range stmts[:len(stmts)-1] {
		text := script[s.Pos().Offset():s.End().Offset()]
		if !strings.Contains(text, "migrate-if-needed.sh") && !strings.Contains(text, "/migrate ") {
			return nil, nil, fmt.Errorf("the shell script in the command does more than migrate and start etcd (column %d): write the command as a list of words first",
				s.Pos().Col())
		}
	}
	call, ok := last.Cmd.(*syntax.CallExpr)
	if !ok || last.Background || last.Negated || len(call.Assigns) > 0 {
		return nil, nil, errors.New("the shell script in the command does not end with etcd and its flags")
	}
	for _, w := range call.Args {
		word, err := literal(w)
		if err != nil {
			return nil, nil, err
		}
		etcd = append(etcd, word)
	}
	if len(etcd) > 0 && etcd[0] == "exec" {
		etcd = etcd[1:]
	}
	if len(etcd) == 0 || path.Base(etcd[0]) != "etcd" {
		return nil, nil, errors.New("the shell script in the command does not end with etcd and its flags")
	}
	notes = append(notes, "the shell is gone from the command, because the image has none")
	if len(last.Redirs) > 0 {
		notes = append(notes, "what etcd prints is no longer written to a file: it is in the container's log")
	}
	return etcd, notes, nil
}

// flatten takes a && b apart.
func flatten(stmts []*syntax.Stmt) (flat []*syntax.Stmt) {
	for _, s := range stmts {
		if and, ok := s.Cmd.(*syntax.BinaryCmd); ok && and.Op == syntax.AndStmt && !s.Background && !s.Negated && len(s.Redirs) == 0 {
			flat = append(flat, flatten([]*syntax.Stmt{and.X, and.Y})...)
			continue
		}
		flat = append(flat, s)
	}
	return flat
}

// literal gives what a word means, if that does not depend on anything.
func literal(w *syntax.Word) (string, error) {
	var b strings.Builder
	for _, part := range w.Parts {
		switch part := part.(type) {
		case *syntax.Lit:
			if strings.ContainsAny(part.Value, "\\*?[~") {
				return "", notLiteral(w)
			}
			b.WriteString(part.Value)
		case *syntax.SglQuoted:
			if part.Dollar {
				return "", notLiteral(w)
			}
			b.WriteString(part.Value)
		case *syntax.DblQuoted:
			for _, inner := range part.Parts {
				lit, ok := inner.(*syntax.Lit)
				if !ok || part.Dollar || strings.Contains(lit.Value, "\\") {
					return "", notLiteral(w)
				}
				b.WriteString(lit.Value)
			}
		default:
			return "", notLiteral(w)
		}
	}
	return b.String(), nil
}

func notLiteral(w *syntax.Word) error {
	return fmt.Errorf("the shell script in the command has a word that the shell makes another of (column %d): write it out first", w.Pos().Col())
}
