package userns

import (
	"bytes"
	"reflect"
	"testing"
)

func TestHelloArrives(t *testing.T) {
	for _, h := range []hello{
		{Choice{Mode: Subid, Reason: "two \"words\",\n%d and 中", Userns: true,
			UIDs: []Range{{0, 1000, 1}, {1, 100000, 65536}}, GIDs: []Range{{0, 4294967295, 1}}}, 3},
		{Choice{Mode: Root}, 0},
	} {
		var b bytes.Buffer
		if err := h.send(&b); err != nil {
			t.Fatal(err)
		}
		if got, err := receiveHello(&b); err != nil || !reflect.DeepEqual(*got, h) {
			t.Errorf("%+v arrives as %+v, %v", h, got, err)
		}
	}
	for _, text := range []string{"", "\n", `"subid" "x" true 1 1 0`} {
		if h, err := receiveHello(bytes.NewBufferString(text)); err == nil {
			t.Errorf("%q is taken for %+v", text, h)
		}
	}
}
