package convert

import (
	"runtime"
	"testing"
)

func BenchmarkToV3(b *testing.B) {
	for _, bb := range []struct {
		name             string
		keys, bytes, ttl int
	}{
		{"100k keys of 400 bytes, 33k TTLs", 100_000, 400, 3},
		{"1M keys of 20 bytes", 1_000_000, 20, 0},
	} {
		b.Run(bb.name, func(b *testing.B) {
			p := params(b, tree(b, bb.keys, bb.bytes, bb.ttl))
			runtime.GC()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ToV3(b.Context(), p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
