package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// setting is a key of a mapping and what it is to be: a scalar, a list, or the settings of a mapping.
type setting struct {
	key   string
	value any
}

// editor collects changes of a text at places that the YAML parser has named.
type editor struct {
	text    []byte
	lines   []int // where each line begins
	newline string
	changes []change
	err     error // the first thing that could not be done
}

// change puts text in the place of what lies between two offsets.
type change struct {
	from, to int
	text     string
}

func newEditor(text []byte) *editor {
	e := &editor{text: text, lines: []int{0}, newline: "\n"}
	for i, b := range text {
		if b == '\n' {
			e.lines = append(e.lines, i+1)
		}
	}
	if bytes.Contains(text, []byte("\r\n")) {
		e.newline = "\r\n"
	}
	return e
}

// apply makes the changes. Those at one place stay in their order.
func (e *editor) apply() ([]byte, error) {
	if e.err != nil {
		return nil, e.err
	}
	slices.SortStableFunc(e.changes, func(a, b change) int { return a.from - b.from })
	var out []byte
	at := 0
	for _, c := range e.changes {
		if c.from < at {
			return nil, errUneditable
		}
		out = append(append(out, e.text[at:c.from]...), c.text...)
		at = c.to
	}
	return append(out, e.text[at:]...), nil
}

func (e *editor) fail(n *yaml.Node, what string) {
	if e.err == nil {
		e.err = fmt.Errorf("line %d of the manifest cannot be edited in place: %s", n.Line, what)
	}
}

// offset gives where a node begins. The parser counts characters.
func (e *editor) offset(n *yaml.Node) int {
	if n.Line < 1 || n.Line > len(e.lines) {
		e.fail(n, "it is not there")
		return 0
	}
	at := e.lines[n.Line-1]
	for range n.Column - 1 {
		_, size := utf8.DecodeRune(e.text[at:])
		at += size
	}
	return at
}

// indent gives what is before a node on its line, as blanks, and whether that is all there is.
func (e *editor) indent(n *yaml.Node) (blanks string, alone bool) {
	at := e.offset(n)
	if e.err != nil {
		return "", false
	}
	before := string(e.text[e.lines[n.Line-1]:at])
	if strings.TrimLeft(before, " \t") == "" { // tabs can be in JSON
		return before, true
	}
	return strings.Repeat(" ", max(n.Column-1, 0)), false
}

// end gives where a scalar that begins at start ends.
func (e *editor) end(n *yaml.Node, start int) int {
	rest := e.text[start:]
	switch {
	case n.Kind != yaml.ScalarNode || len(rest) == 0 || n.Anchor != "":
	case n.Style&yaml.DoubleQuotedStyle != 0 && rest[0] == '"':
		for i := 1; i < len(rest); i++ {
			switch rest[i] {
			case '\\':
				i++
			case '"':
				return start + i + 1
			}
		}
	case n.Style&yaml.SingleQuotedStyle != 0 && rest[0] == '\'':
		for i := 1; i < len(rest); i++ {
			if rest[i] == '\'' {
				if i+1 == len(rest) || rest[i+1] != '\'' {
					return start + i + 1
				}
				i++
			}
		}
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		return e.endOfBlock(n.Line)
	case n.Style&yaml.TaggedStyle == 0 && bytes.HasPrefix(rest, []byte(n.Value)):
		return start + len(n.Value)
	}
	e.fail(n, "the value is written in a way that is not understood")
	return start
}

// endOfBlock gives where the text ends that begins behind a | or > on that line: with the last line that is indented further
// than that one.
func (e *editor) endOfBlock(line int) int {
	width := func(i int) (indent int, blank bool) {
		text := e.line(i)
		trimmed := strings.TrimLeft(text, " ")
		return len(text) - len(trimmed), trimmed == ""
	}
	head, _ := width(line)
	last := line
	for i := line + 1; i <= len(e.lines); i++ {
		if indent, blank := width(i); !blank && indent <= head {
			break
		} else if !blank {
			last = i
		}
	}
	return e.lines[last-1] + len(e.line(last))
}

// line gives a line, counted from 1, without its end.
func (e *editor) line(i int) string {
	end := len(e.text)
	if i < len(e.lines) {
		end = e.lines[i]
	}
	return strings.TrimRight(string(e.text[e.lines[i-1]:end]), "\r\n")
}

// command makes a container's command another one: by words before it, or else as a whole.
func (e *editor) command(container *yaml.Node, old, new []string) {
	seq := find(container, "command")
	if slices.Equal(old, new) {
		return
	}
	if seq == nil || seq.Kind != yaml.SequenceNode {
		e.fail(container, "its command is no list")
		return
	}
	first, last := seq.Content[0], seq.Content[len(seq.Content)-1]
	from := e.offset(first)
	to, words, after := from, new, ""
	if n := len(new) - len(old); n > 0 && slices.Equal(old, new[n:]) {
		words, after = new[:n], "more"
	} else {
		to = e.end(last, e.offset(last))
	}
	indent, alone := e.indent(first)
	var rendered []string
	separator := ", "
	if seq.Style&yaml.FlowStyle != 0 {
		for _, w := range words {
			rendered = append(rendered, quoted(w))
		}
		if alone {
			separator = "," + e.newline + indent
		}
	} else {
		for _, w := range words {
			rendered = append(rendered, scalar(w))
		}
		dashes, _ := e.indent(seq)
		separator = e.newline + dashes + "- "
	}
	text := strings.Join(rendered, separator)
	if after != "" {
		text += separator
	}
	e.changes = append(e.changes, change{from, to, text})
}

// merge puts a setting into a mapping, and leaves alone what is so already.
func (e *editor) merge(mapping *yaml.Node, s setting) {
	if mapping.Kind != yaml.MappingNode {
		e.fail(mapping, s.key+" cannot be set in what is no mapping")
		return
	}
	n := find(mapping, s.key)
	if n == nil {
		e.insert(mapping, s)
		return
	}
	if settings, ok := s.value.([]setting); ok {
		for _, inner := range settings {
			e.merge(n, inner)
		}
		return
	}
	var is any
	if err := n.Decode(&is); err == nil && reflect.DeepEqual(is, s.value) {
		return
	}
	from := e.offset(n)
	to := e.end(n, from)
	var text string
	switch v, isString := s.value.(string); {
	case isString && n.Style&yaml.DoubleQuotedStyle != 0:
		text = quoted(v)
	case isString && n.Style&yaml.SingleQuotedStyle != 0:
		text = "'" + strings.ReplaceAll(v, "'", "''") + "'"
	case isString:
		text = scalar(v)
	default:
		text = asJSON(s.value)
	}
	e.changes = append(e.changes, change{from, to, text})
}

// insert adds a key to a mapping, before the first one that comes after it in the alphabet, which is kubeadm's order.
func (e *editor) insert(mapping *yaml.Node, s setting) {
	flow := mapping.Style&yaml.FlowStyle != 0
	if len(mapping.Content) == 0 {
		if !flow {
			e.fail(mapping, s.key+" cannot be set in what is empty")
			return
		}
		at := e.offset(mapping) + 1 // behind the brace
		text := quoted(s.key) + ": " + asJSON(s.value)
		if i := slices.IndexFunc(e.changes, func(c change) bool { return c.from == at }); i >= 0 {
			text = ", " + text
		}
		e.changes = append(e.changes, change{at, at, text})
		return
	}
	var before *yaml.Node
	for i := 0; i < len(mapping.Content); i += 2 {
		key := mapping.Content[i]
		if _, alone := e.indent(key); !alone && !flow {
			continue // the first key of a list's item: what comes before it would not be in the item
		}
		if before == nil || before.Value < s.key {
			before = key
		}
		if key.Value > s.key {
			break
		}
	}
	if before == nil {
		e.fail(mapping, "there is no room for "+s.key)
		return
	}
	at := e.offset(before)
	indent, alone := e.indent(before)
	var text string
	switch {
	case flow && alone:
		text = quoted(s.key) + ": " + asJSON(s.value) + "," + e.newline + indent
	case flow:
		text = quoted(s.key) + ": " + asJSON(s.value) + ", "
	default:
		for _, line := range asBlock(s, "") {
			text += line + e.newline + indent
		}
	}
	e.changes = append(e.changes, change{at, at, text})
}

// asBlock gives a setting's lines.
func asBlock(s setting, indent string) (lines []string) {
	switch v := s.value.(type) {
	case []setting:
		lines = append(lines, indent+s.key+":")
		for _, inner := range v {
			lines = append(lines, asBlock(inner, indent+"  ")...)
		}
	case []any:
		lines = append(lines, indent+s.key+":")
		for _, item := range v {
			lines = append(lines, indent+"- "+fmt.Sprint(item))
		}
	default:
		lines = append(lines, fmt.Sprintf("%s%s: %v", indent, s.key, v))
	}
	return lines
}

func asJSON(value any) string {
	if settings, ok := value.([]setting); ok {
		var parts []string
		for _, s := range settings {
			parts = append(parts, quoted(s.key)+": "+asJSON(s.value))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(value) // scalars and lists of them
	return strings.TrimSpace(b.String())
}

func quoted(s string) string { return asJSON(s) }

// scalar writes a string without quotes, if it is read as that string then.
func scalar(s string) string {
	var back []any
	if !strings.ContainsAny(s, "\r\n#") && yaml.Unmarshal([]byte("- "+s), &back) == nil && len(back) == 1 && back[0] == s {
		return s
	}
	return quoted(s)
}

// find gives the value of a mapping's key, nil if there is none.
func find(mapping *yaml.Node, key string) *yaml.Node {
	if mapping == nil || mapping.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

// mergeInto is editor.merge on what the text means.
func mergeInto(mapping map[string]any, s setting) {
	settings, ok := s.value.([]setting)
	if !ok {
		mapping[s.key] = s.value
		return
	}
	inner, ok := mapping[s.key].(map[string]any)
	if !ok {
		inner = map[string]any{}
		mapping[s.key] = inner
	}
	for _, in := range settings {
		mergeInto(inner, in)
	}
}
