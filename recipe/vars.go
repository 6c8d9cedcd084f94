package recipe

import "slices"

// Vars is an ordered set of variables. A nil *Vars is empty. A variable that is
// set again moves to the end, as in BuildKit's environment of a step.
type Vars struct {
	pairs []Pair
}

// NewVars takes the form of an image's Env: KEY=value; a later one wins.
func NewVars(list []string) *Vars {
	v := &Vars{}
	for _, kv := range list {
		v.Set(cut(kv))
	}
	return v
}

// Get tells the value of a variable and whether it is set.
func (v *Vars) Get(key string) (string, bool) {
	if i := v.index(key); i >= 0 {
		return v.pairs[i].Value, true
	}
	return "", false
}

// Set sets a variable.
func (v *Vars) Set(key, value string) {
	v.Unset(key)
	v.pairs = append(v.pairs, Pair{key, value})
}

// Unset removes a variable.
func (v *Vars) Unset(key string) {
	if i := v.index(key); i >= 0 {
		v.pairs = slices.Delete(v.pairs, i, i+1)
	}
}

// replace sets a variable where it stands: the order of an image's Env.
func (v *Vars) replace(key, value string) {
	if i := v.index(key); i >= 0 {
		v.pairs[i].Value = value
		return
	}
	v.pairs = append(v.pairs, Pair{key, value})
}

// Keys lists the names in order.
func (v *Vars) Keys() []string {
	if v == nil {
		return nil
	}
	keys := make([]string, len(v.pairs))
	for i, p := range v.pairs {
		keys[i] = p.Key
	}
	return keys
}

// List gives KEY=value in order.
func (v *Vars) List() []string {
	if v == nil {
		return nil
	}
	list := make([]string, len(v.pairs))
	for i, p := range v.pairs {
		list[i] = p.Key + "=" + p.Value
	}
	return list
}

// Clone gives a copy that changes on its own.
func (v *Vars) Clone() *Vars {
	if v == nil {
		return &Vars{}
	}
	return &Vars{pairs: slices.Clone(v.pairs)}
}

func (v *Vars) index(key string) int {
	if v == nil {
		return -1
	}
	// From the end: what was set last is asked for most.
	for i := len(v.pairs) - 1; i >= 0; i-- {
		if v.pairs[i].Key == key {
			return i
		}
	}
	return -1
}
