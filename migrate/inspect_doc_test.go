package migrate

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestDocumentedFields sees that docs/formats has every field of the JSON and no other, and says which are left out when empty.
func TestDocumentedFields(t *testing.T) {
	for doc, v := range map[string]any{"inspect.md": State{}, "rehearse.md": Rehearsal{}, "report.md": Report{}} {
		have := map[string]bool{}
		fields(have, "", reflect.TypeOf(v))
		text, err := os.ReadFile("../docs/formats/" + doc)
		if err != nil {
			t.Fatal(err)
		}
		documented := map[string]bool{}
		for line := range strings.Lines(string(text)) {
			if cells := strings.Split(line, "|"); len(cells) > 2 {
				for _, f := range regexp.MustCompile("`([^`]+)`(\\\\\\*)?").FindAllStringSubmatch(cells[1], -1) {
					documented[f[1]] = f[2] != ""
				}
			}
		}
		if diff := cmp.Diff(have, documented); diff != "" {
			t.Errorf("%s does not document what there is: %s", doc, diff)
		}
	}
}

// elsewhere are types that are texts in JSON, or have a document of their own.
var elsewhere = map[reflect.Type]bool{
	reflect.TypeFor[versionfile.Version](): true, reflect.TypeFor[time.Time](): true, reflect.TypeFor[State](): true, reflect.TypeFor[Report](): true,
}

// fields notes the path of each field in the JSON of a type, and whether it is left out when it is empty.
func fields(into map[string]bool, path string, t reflect.Type) {
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "-" {
			continue
		}
		if f.Anonymous {
			fields(into, path, f.Type)
			continue
		}
		name, inner := path+name, f.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Pointer && inner.Elem().Kind() == reflect.Struct && !elsewhere[inner.Elem()] {
			into[name] = strings.Contains(options, "omitempty")
			fields(into, name+".", inner.Elem())
			continue
		}
		omitted := strings.Contains(options, "omitempty")
		switch {
		case inner.Kind() != reflect.Struct || elsewhere[inner]:
			into[name] = omitted
		case inner != f.Type:
			if omitted {
				into[name] = true
			}
			fields(into, name+"[].", inner)
		default:
			fields(into, name+".", inner)
		}
	}
}
