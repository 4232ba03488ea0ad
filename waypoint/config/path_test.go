package config

import (
	"slices"
	"testing"
)

// TestPathTricks spells /admin, which policy denies, in ways that an application may understand. What comes through has
// the path that policy has seen.
func TestPathTricks(t *testing.T) {
	const denied = ""
	both(t, func(t *testing.T, s *stage) {
		for _, c := range []struct{ target, want string }{
			{"/admin", denied},
			{"/admin/", denied},
			{"/admin/x", denied},
			{"/admin?x=1", denied},
			{"/admin?", denied},
			{"/./admin", denied},
			{"/.//admin", "//admin"},
			{"/x/../admin", denied},
			{"/../admin", denied},
			{"/../../admin", denied},
			{"/admin/.", denied},
			{"/admin/x/..", denied},
			{"/x/%2e%2e/admin", denied},
			{"/x/%2E%2E/admin", denied},
			{"/x/.%2e/admin", denied},
			{"/%2e/admin", denied},
			{"/x/%252e%252e/admin", "/x/%252e%252e/admin"},
			{"/%61dmin", denied},
			{"/%61%64%6d%69%6e", denied},
			{"/%41dmin", "/Admin"},
			{"/%2561dmin", "/%2561dmin"},
			{"/x\\..\\admin", denied},
			{"\\admin", denied},
			{"/admin%2Fx", "/admin%2Fx"},
			{"/x/..%2Fadmin", "/x/..%2Fadmin"},
			{"/%2Fadmin", "/%2Fadmin"},
			{"/%5cadmin", "/%5cadmin"},
			{"//admin", "//admin"},
			{"///admin", "///admin"},
			{"/x//../admin", "/x/admin"},
			{"/admin;x=1", "/admin;x=1"},
			{"/;x/admin", "/;x/admin"},
			{"/x/..;/admin", denied},
			{"/ADMIN", "/ADMIN"},
			{"/admin#x", denied},
			{"/#/../admin", denied},
			{"/admin%23", "/admin%23"},
			{"/admin%3f", "/admin%3f"},
			{"/admin%00", denied},
			{"/admin%0d%0aX:%20y", "/admin%0d%0aX:%20y"},
			{"/admin%20", "/admin%20"},
			{"/admin.", "/admin."},
			{"/\xc0\xaeadmin", denied},
			{"/admin\x7f", denied},
		} {
			t.Run(c.target, func(t *testing.T) {
				statuses, _ := s.say(t, get(c.target))
				got, garbage := s.app.take()
				for _, g := range garbage {
					t.Errorf("the application cannot read what it got: %q", g)
				}
				heard := ""
				for _, h := range got {
					if h.target != "/last" {
						heard += h.target
					}
				}
				if heard != c.want || (c.want == denied) == slices.Equal(statuses, []int{200}) {
					t.Errorf("answers %v; the application got %q, want %q", statuses, heard, c.want)
				}
			})
		}
	})
}
